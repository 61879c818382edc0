"""Near-duplicates: texts whose three-word shingles overlap, found by MinHash (Broder 1997) without comparing all pairs.

The signatures are those of datasketch 2 (`MinHash(64, hashfunc=zlib.crc32)`), whose import would take most of a second.
Its LSH index would keep several kilobytes per text in dictionaries, so the bands are sorted in files instead.
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

from alignment_core.data.dataset.disk_arrays import DiskColumns, disk_array, hash_groups, slices

PERMUTATIONS = 64
BANDS = 16
"""Bands of four rows. Texts of similarity s share a band with probability 1 - (1 - s⁴)¹⁶: above 0.999 at s = 0.8."""
SLACK = 0.15
"""The error of an estimate from 64 permutations is smaller than this in 99.7% of cases."""
LAGS = (1, 2, 3, 5, 8)
"""A text is compared with the texts this far before it in its bucket, and with the bucket's first text."""
LEADERS = 64
"""Maximum number of texts of a group that a text is compared with."""
CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+|[^\w\s.,;:!?\"'“”‘’…]")
"""A word, a symbol that carries meaning (1+2 is not 1-2), or a character of a script without spaces."""


def words(text: str) -> list[str]:
    """Return the words of a text, case-folded and without punctuation."""
    return WORD.findall(text.casefold()) or text.split()


def shingles(text: str) -> frozenset[str]:
    """Return all sequences of three consecutive words. A shorter text is one shingle."""
    found = words(text)
    return frozenset(" ".join(found[i : i + 3]) for i in range(max(1, len(found) - 2)))


def signature(text: str) -> Any:
    """Return the MinHash signature of a text's shingles, shape (64,), uint32."""
    hashes = np.array([zlib.crc32(shingle.encode()) for shingle in shingles(text)], np.uint32)
    factors, offsets = _permutations()
    return (_mixed(hashes)[:, np.newaxis] * factors + offsets).min(axis=0)


def similarity(first: frozenset[str], second: frozenset[str]) -> float:
    """Return the Jaccard similarity, 0 to 1."""
    return len(first & second) / len(first | second)


def clusters(signatures: Any, chosen: Any, text: Callable[[int], str], threshold: float, scratch: Path) -> Any:
    """Label texts so that near-duplicates (and their near-duplicates) share a label.

    Args:
        signatures: shape (texts, 64), uint32.
        chosen: which texts to cluster, shape (texts,), bool.
        text: returns the text of an index. Called only for texts with similar signatures.
        threshold: minimum Jaccard similarity of near-duplicates.
        scratch: a folder for temporary files.

    Returns:
        The index of the first text in each text's cluster, shape (texts,). For texts not in `chosen`, their own index.
    """
    parent = disk_array(scratch, len(signatures), np.int64)
    for part in slices(len(parent)):
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
    for part in slices(len(parent)):
        while (parent[part] != (above := parent[parent[part]])).any():
            parent[part] = above
    return parent


def near_duplicate_items(items: Iterable[tuple[Hashable, Sequence[str]]], threshold: float) -> Iterator[bool]:
    """Yield for each item whether all its texts are near-duplicates of those of an earlier item in its group.

    Args:
        items: group and texts of each item. The items of a group are consecutive.
        threshold: minimum Jaccard similarity of near-duplicates.
    """
    for _, group in groupby(items, key=itemgetter(0)):
        earlier: list[list[frozenset[str]]] = []
        for _, texts in group:
            own = [shingles(text) for text in texts]
            copy = any(_alike(own, other, threshold) for other in earlier)
            if not copy:
                earlier = [*earlier[1 - LEADERS :], own]
            yield copy


def _alike(first: Sequence[frozenset[str]], second: Sequence[frozenset[str]], threshold: float) -> bool:
    return all(similarity(a, b) >= threshold for a, b in zip(first, second, strict=True))


@cache
def _permutations() -> tuple[Any, Any]:
    """Return `a` and `b` of the permutations h -> a·h + b modulo 2³². An odd `a` makes the map one-to-one."""
    random = np.random.RandomState(1)
    factors = random.randint(0, 2**31, PERMUTATIONS, np.uint32) * np.uint32(2) + np.uint32(1)
    return factors, random.randint(0, 2**32, PERMUTATIONS, np.uint32)


def _mixed(hashes: Any) -> Any:
    """Return the hashes with their bits mixed by the finalizer of MurmurHash3, because the permutations are linear."""
    hashes = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ (hashes >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return hashes ^ (hashes >> np.uint32(16))


def _candidates(signatures: Any, chosen: Any, similar: float, scratch: Path) -> Iterator[tuple[int, int]]:
    """Yield each pair that shares a band and at least the fraction `similar` of the signature once, in order."""
    rows = PERMUTATIONS // BANDS
    keys = disk_array(scratch, len(signatures), np.uint64)
    spool = DiskColumns(scratch)
    for band in range(BANDS):
        for part in slices(len(keys)):
            values = np.ascontiguousarray(signatures[part, band * rows : (band + 1) * rows]).view(np.uint64)
            keys[part] = values[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ values[:, 1]
        for texts in hash_groups(keys, chosen):
            for first, second in _alike_in_buckets(signatures, texts, keys[texts], similar):
                spool.append(pairs=(first << 32 | second).astype(np.uint64))
    pairs = spool.arrays().get("pairs", np.zeros(0, np.uint64))
    pairs.sort()
    last = None
    for part in slices(len(pairs)):
        for pair in pairs[part].tolist():
            if pair != last:
                yield pair >> 32, pair & 0xFFFFFFFF
            last = pair


def _alike_in_buckets(signatures: Any, texts: Any, keys: Any, similar: float) -> Iterator[tuple[Any, Any]]:
    """Yield some pairs (earlier text, later text) with equal keys and similar signatures."""
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    members = np.flatnonzero(same) + 1
    # Each member of a bucket is compared with the bucket's first member and with a few members before it.
    starts = np.maximum.accumulate(np.where(np.r_[True, ~same], np.arange(len(order)), 0))[members]
    for others in (starts, *(np.maximum(members - lag, starts) for lag in LAGS)):
        for chunk in range(0, len(members), 4096):
            first, second = (texts[order[at[chunk : chunk + 4096]]] for at in (others, members))
            alike = (signatures[first] == signatures[second]).mean(axis=1) >= similar
            yield first[alike], second[alike]
