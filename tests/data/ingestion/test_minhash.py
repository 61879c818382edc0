"""Near-duplicates found by MinHash, compared with checking every pair."""

from __future__ import annotations

import random
import tempfile
import zlib
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment_core.data.ingestion.minhash import (
    clusters,
    near_duplicate_items,
    shingles,
    signature,
    similarity,
    words,
)


def cluster(texts: list[str], threshold: float = 0.8) -> list[int]:
    signatures, chosen = np.stack([signature(text) for text in texts]), np.ones(len(texts), dtype=bool)
    with tempfile.TemporaryDirectory() as folder:
        labels = clusters(signatures, chosen, lambda index: texts[index], threshold, Path(folder))
    return [int(label) for label in labels]


def test_similarity_by_hand() -> None:
    """The triples of "a b c d" are abc and bcd, those of "a b c e" are abc and bce. One of three is shared."""
    assert similarity(shingles("a b c d"), shingles("a b c e")) == pytest.approx(1 / 3)
    assert similarity(shingles("A, b: c d!"), shingles("a b c d")) == 1.0
    assert similarity(shingles("yes"), shingles("no")) == 0.0


@settings(deadline=None)
@given(st.text(max_size=200))
def test_signatures_are_those_of_datasketch(text: str) -> None:
    """Cached shards hold signatures, so they must never change."""
    from datasketch import MinHash

    theirs = MinHash(64, hashfunc=zlib.crc32)
    theirs.update_batch([shingle.encode() for shingle in shingles(text)])
    assert signature(text).dtype == np.uint32
    assert signature(text).tolist() == theirs.hashvalues.tolist()


def test_meaningful_symbols_count_and_punctuation_does_not() -> None:
    assert words("What is 1+2?") != words("What is 1-2?")
    assert words("C++ or C") == ["c", "+", "+", "or", "c"]
    assert words("Hello, “world”…") == ["hello", "world"]
    assert words("你好 world") == ["你", "好", "world"]
    assert words("?!") == ["?!"]


def test_clusters_are_the_connected_components_of_similar_pairs() -> None:
    """On 300 texts with planted copies, the clusters are the connected components of all pairs above the threshold."""
    rng = random.Random(5)
    vocabulary = [f"w{index}" for index in range(400)]
    texts = []
    for _ in range(100):
        base = [rng.choice(vocabulary) for _ in range(rng.randint(5, 60))]
        texts.append(" ".join(base))
        for _ in range(rng.randint(0, 4)):
            copy = list(base)
            for _ in range(rng.randint(0, 3)):
                copy[rng.randrange(len(copy))] = rng.choice(vocabulary)
            texts.append(" ".join(copy))
    parent = list(range(len(texts)))

    def root(index: int) -> int:
        return index if parent[index] == index else root(parent[index])

    sets = [shingles(text) for text in texts]
    for a, b in combinations(range(len(texts)), 2):
        if similarity(sets[a], sets[b]) >= 0.8:
            low, high = sorted((root(a), root(b)))
            parent[high] = low
    assert cluster(texts) == [root(index) for index in range(len(texts))]
    assert len(set(cluster(texts))) < len(texts)


def test_texts_from_one_template_are_still_distinguished() -> None:
    """With hundreds of texts in the same buckets, comparing a few neighbors still finds nearly every pair."""
    rng = random.Random(3)
    template = " ".join(f"t{index}" for index in range(14))
    texts = [f"{template} " + " ".join(f"w{rng.randrange(12)}" for _ in range(rng.randint(2, 5))) for _ in range(400)]
    sets, labels = [shingles(text) for text in texts], cluster(texts)
    pairs = [(a, b) for a, b in combinations(range(400), 2) if similarity(sets[a], sets[b]) >= 0.8]
    together = sum(labels[a] == labels[b] for a, b in pairs)
    assert len(pairs) > 1000
    assert together > 0.97 * len(pairs)
    assert len(set(labels)) > 50


@settings(max_examples=50, deadline=None)
@given(text=st.text(min_size=1, max_size=80).filter(str.strip))
def test_case_and_whitespace_do_not_count(text: str) -> None:
    assert len(set(cluster([text, f" {text}\n", text]))) == 1


def test_item_is_a_duplicate_only_if_all_its_parts_match() -> None:
    long = "one two three four five six seven eight nine ten eleven twelve"
    items = [(long, "yes"), (long + " thirteen", "Yes."), (long, "no"), ("other words here", "yes")]
    assert list(near_duplicate_items(((1, item) for item in items), 0.8)) == [False, True, False, False]
    assert not any(near_duplicate_items(zip([1, 2, 3, 3], items, strict=True), 0.8))
