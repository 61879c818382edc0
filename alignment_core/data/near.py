"""Near-duplicates: texts whose three-word shingles overlap, found by MinHash (Broder 1997) without comparing all pairs.

The signatures are datasketch's. Its LSH index would hold some kilobytes per text in dictionaries, so the bands are
sorted here instead, in files.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from alignment_core.data.ondisk import Spool, by_hash, in_parts, on_disk

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


def clusters(signatures: Any, chosen: Any, text: Callable[[int], str], threshold: float, scratch: Path) -> Any:
    """Number texts so that near-duplicates (and their near-duplicates) share a number.

    Args:
        signatures: shape (texts, 64), uint32.
        chosen: which texts count, shape (texts,), bool.
        text: the text of an index, for those whose signatures look alike.
        threshold: Jaccard similarity from which on two texts are near-duplicates.
        scratch: a folder for temporary files.

    Returns:
        Shape (texts,): index of the first text of each one's cluster; its own for those that do not count.
    """
    parent = on_disk(scratch, len(signatures), np.int64)
    for part in in_parts(len(parent)):
        parent[part] = np.arange(part.start, part.stop)

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = int(parent[index])
        return index

    for first, second in _candidates(signatures, chosen, threshold - SLACK, scratch):
        a, b = sorted((root(first), root(second)))
        if a != b and similarity(shingles(text(first)), shingles(text(second))) >= threshold:
            parent[b] = a
    for part in in_parts(len(parent)):
        while (parent[part] != (above := parent[parent[part]])).any():
            parent[part] = above
    return parent


def near_copies(items: Iterable[tuple[Hashable, Sequence[str]]], threshold: float) -> Iterator[bool]:
    """Whether all texts of an item are near-duplicates of those of an earlier item in its group.

    Args:
        items: group and texts; the items of a group follow one another.
        threshold: Jaccard similarity from which on two texts are near-duplicates.
    """
    for _, group in groupby(items, key=itemgetter(0)):
        known: list[list[frozenset[str]]] = []
        for _, texts in group:
            own = [shingles(text) for text in texts]
            copy = any(_alike(own, other, threshold) for other in known)
            if not copy:
                known = [*known[1 - LEADERS :], own]
            yield copy


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


def _candidates(signatures: Any, chosen: Any, similar: float, scratch: Path) -> Iterator[tuple[int, int]]:
    """Pairs that share a band and whose signatures agree in at least the share `similar`, each once, in order."""
    rows = PERMUTATIONS // BANDS
    keys = on_disk(scratch, len(signatures), np.uint64)
    spool = Spool(scratch)
    for band in range(BANDS):
        for part in in_parts(len(keys)):
            values = np.ascontiguousarray(signatures[part, band * rows : (band + 1) * rows]).view(np.uint64)
            keys[part] = values[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ values[:, 1]
        for texts in by_hash(keys, chosen):
            for first, second in _alike_in_buckets(signatures, texts, keys[texts], similar):
                spool.append(pairs=(first << 32 | second).astype(np.uint64))
    pairs = spool.arrays().get("pairs", np.zeros(0, np.uint64))
    pairs.sort()
    last = None
    for part in in_parts(len(pairs)):
        for pair in pairs[part].tolist():
            if pair != last:
                yield pair >> 32, pair & 0xFFFFFFFF
            last = pair


def _alike_in_buckets(signatures: Any, texts: Any, keys: Any, similar: float) -> Iterator[tuple[Any, Any]]:
    """Of texts with the same key some pairs, earlier and later, whose signatures are alike."""
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    members = np.flatnonzero(same) + 1
    # Each member of a bucket is compared with a few before it and with the bucket's first.
    starts = np.maximum.accumulate(np.where(np.r_[True, ~same], np.arange(len(order)), 0))[members]
    for others in (starts, *(np.maximum(members - lag, starts) for lag in LAGS)):
        for chunk in range(0, len(members), 4096):
            first, second = (texts[order[at[chunk : chunk + 4096]]] for at in (others, members))
            alike = (signatures[first] == signatures[second]).mean(axis=1) >= similar
            yield first[alike], second[alike]
