"""What is decided across files: votes, duplicates, the split, and which rows each record gives.

Everything here works on the numeric columns of `Shards`, a part at a time; texts are fetched only for records that
look like near-duplicates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from alignment_core.data.conversion import Chosen, rows_of
from alignment_core.data.facts import Facts
from alignment_core.data.ondisk import in_parts, on_disk, places
from alignment_core.data.parts import mixed
from alignment_core.data.resemblance import drop_near_duplicates
from alignment_core.data.shards import Shards
from alignment_core.data.votes import resolve

HASHES = 2**64


def select(
    shards: Shards, weights: Any, held_out_fraction: float, near: float | None, scratch: Path
) -> tuple[Chosen, Chosen, Facts]:
    """Choose the rows of the training and the held-out split.

    Args:
        shards: all records.
        weights: share of each shard's records that is used; shape (shards,).
        held_out_fraction: share of conversations kept away from training.
        near: Jaccard similarity from which on texts are near-duplicates; None: only exact ones are looked for.
        scratch: a folder for temporary files.
    """
    facts, numbers = Facts(), shards.numbers
    kept = on_disk(scratch, len(shards), bool)
    for part in in_parts(len(kept)):
        kept[part] = numbers["fits"][part] & _sampled(numbers, part, weights)
    resolve(numbers, kept, scratch, facts)
    limit = _limit(numbers["root"], kept, held_out_fraction, facts)
    held = on_disk(scratch, len(shards), bool)
    for part in in_parts(len(held)):
        held[part] = numbers["root"][part] < np.uint64(limit)
    if near is not None:
        drop_near_duplicates(shards, kept, held, near, scratch, facts)
    train = rows_of(numbers, kept & ~held, "train", scratch, facts)
    return train, rows_of(numbers, kept & held, "held_out", scratch, facts), facts


def repeats(numbers: Any, rows: Any, weights: Any) -> Any:
    """How often each row is written: once, or as often as its source's weight says."""
    weight = np.maximum(weights[numbers["shard"][rows]], 1.0)
    whole = np.floor(weight)
    return (whole + (_uniform(numbers["root"][rows]) < weight - whole)).astype(np.int64)


def _limit(roots: Any, kept: Any, fraction: float, facts: Facts) -> int:
    """Conversations whose hash is below this are held out. Other records change nothing about that."""
    lowest, highest = HASHES, -1
    for part in places(kept):
        lowest, highest = min(lowest, int(roots[part].min())), max(highest, int(roots[part].max()))
    limit = min(int(fraction * HASHES), HASHES - 1)
    if lowest >= highest:
        if lowest == highest:
            facts.warnings.append("All records start the same conversation: nothing is held out")
        return 0
    return lowest + 1 if lowest >= limit else min(limit, highest)


def _sampled(numbers: Any, rows: Any, weights: Any) -> Any:
    return _uniform(numbers["root"][rows]) < weights[numbers["shard"][rows]]


def _uniform(roots: Any) -> Any:
    """A number in [0, 1) for each conversation, independent of the one that splits."""
    return mixed(roots, np.full(len(roots), 0x5EED)) / 2.0**64
