"""Near-duplicates: texts whose three-word shingles overlap, found by MinHash (Broder 1997) without comparing all pairs.

The signatures are datasketch's. Its LSH index would hold some kilobytes per text in dictionaries, so the bands are
sorted here instead: eight bytes per text at a time.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any

import numpy as np

PERMUTATIONS = 64
BANDS = 16
"""Bands of four rows: two texts of similarity s share one with probability 1 - (1 - s⁴)¹⁶, at 0.8 above 0.999."""
SLACK = 0.15
"""An estimate from 64 permutations is off by less than this, three times in a thousand excepted."""
LAGS = (1, 2, 3, 5, 8)
"""Which earlier members of its bucket a text is compared with, besides the first."""
LEADERS = 64
"""Texts of one group that a new one is compared with."""
CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+|[^\w\s.,;:!?\"'“”‘’…]")
"""A word, a sign that bears meaning (1+2 is not 1-2), or a character of a script without spaces."""


def words(text: str) -> list[str]:
    """The text's words, without case and punctuation."""
    return WORD.findall(text.casefold()) or text.split()


def shingles(text: str) -> frozenset[str]:
    """Each three words in a row; a shorter text is one shingle."""
    found = words(text)
    return frozenset(" ".join(found[i : i + 3]) for i in range(max(1, len(found) - 2)))


def signature(text: str) -> Any:
    """MinHash signature of the text's shingles, shape (64,), uint32."""
    sketch = _sketch()
    sketch.clear()
    sketch.update_batch([shingle.encode() for shingle in shingles(text)])
    return sketch.hashvalues


def similarity(first: frozenset[str], second: frozenset[str]) -> float:
    """Jaccard similarity, 0 to 1."""
    return len(first & second) / len(first | second)


def clusters(signatures: Any, text: Callable[[int], str], threshold: float) -> Any:
    """Number texts so that near-duplicates (and their near-duplicates) share a number.

    Args:
        signatures: shape (texts, 64), uint32; may be memory-mapped.
        text: the text of an index, for those whose signatures look alike.
        threshold: Jaccard similarity from which on two texts are near-duplicates.

    Returns:
        Shape (texts,): index of the first text of each one's cluster.
    """
    parent = np.arange(len(signatures))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = int(parent[index])
        return index

    for first, second in _candidates(signatures, threshold - SLACK):
        a, b = sorted((root(first), root(second)))
        if a != b and similarity(shingles(text(first)), shingles(text(second))) >= threshold:
            parent[b] = a
    return np.array([root(index) for index in range(len(parent))], dtype=np.int64)


def near_copies(groups: Sequence[Hashable], texts: Sequence[tuple[str, ...]], threshold: float) -> list[int]:
    """Indices of items all of whose texts are near-duplicates of those of an earlier item in the same group."""
    leaders: dict[Hashable, list[list[frozenset[str]]]] = {}
    copies = []
    for index, (group, item) in enumerate(zip(groups, texts, strict=True)):
        own, known = [shingles(text) for text in item], leaders.setdefault(group, [])
        if any(_alike(own, other, threshold) for other in known):
            copies.append(index)
        else:
            known.append(own)
            del known[:-LEADERS]
    return copies


def resembling(texts: Sequence[str], others: Sequence[str], threshold: float) -> list[bool]:
    """Which of `texts` are near-duplicates of one of the first `LEADERS` of `others`."""
    known = [shingles(other) for other in others[:LEADERS]]
    return [any(similarity(shingles(text), other) >= threshold for other in known) for text in texts]


def _alike(first: Sequence[frozenset[str]], second: Sequence[frozenset[str]], threshold: float) -> bool:
    return all(similarity(a, b) >= threshold for a, b in zip(first, second, strict=True))


@cache
def _sketch() -> Any:
    from datasketch import MinHash

    return MinHash(PERMUTATIONS, hashfunc=zlib.crc32)


def _candidates(signatures: Any, similar: float) -> list[tuple[int, int]]:
    """Pairs that share a band and whose signatures agree in at least the share `similar`."""
    rows = PERMUTATIONS // BANDS
    pairs: set[tuple[int, int]] = set()
    for band in range(BANDS):
        values = np.ascontiguousarray(signatures[:, band * rows : (band + 1) * rows]).view(np.uint64)
        keys = values[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ values[:, 1]
        order = np.argsort(keys, kind="stable")
        same = keys[order][1:] == keys[order][:-1]
        members = np.flatnonzero(same) + 1
        # Each member of a bucket is compared with a few before it and with the bucket's first.
        starts = np.maximum.accumulate(np.where(np.r_[True, ~same], np.arange(len(order)), 0))[members]
        for others in (starts, *(np.maximum(members - lag, starts) for lag in LAGS)):
            for chunk in range(0, len(members), 4096):
                first, second = order[others[chunk : chunk + 4096]], order[members[chunk : chunk + 4096]]
                alike = (signatures[first] == signatures[second]).mean(axis=1) >= similar
                pairs.update(zip(first[alike].tolist(), second[alike].tolist(), strict=True))
    return sorted(pairs)
