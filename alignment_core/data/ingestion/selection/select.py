"""Make the decisions that span files: votes, duplicates, the held-out split, and which rows each record gives.

Everything here works on the numeric columns of `Shards`, one part at a time. Texts are read only for records that look
like near-duplicates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from alignment_core.data.dataset.disk_arrays import disk_array, slices
from alignment_core.data.ingestion.conversion import Chosen, rows_of
from alignment_core.data.ingestion.counts import SelectionCounts, counted
from alignment_core.data.ingestion.record_parts import combine_hashes
from alignment_core.data.ingestion.selection.held_out import held_out_records
from alignment_core.data.ingestion.selection.near_duplicates import drop_copies, similar_prompts
from alignment_core.data.ingestion.selection.rare_rows import rows_given
from alignment_core.data.ingestion.selection.vote_resolution import resolve_votes
from alignment_core.data.ingestion.shards import Shards


def select(
    shards: Shards, weights: Any, held_out_fraction: float, near: float | None, scratch: Path
) -> tuple[Chosen, Chosen, SelectionCounts]:
    """Choose the rows of the training split and of the held-out split.

    Args:
        shards: all records.
        weights: fraction of each shard's records to use (1 or more: all of them), shape (shards,).
        held_out_fraction: fraction of the conversations to hold out from training.
        near: minimum Jaccard similarity of near-duplicates. None: only exact duplicates are removed.
        scratch: a folder for temporary files.
    """
    counts, numbers = SelectionCounts(), shards.numbers
    kept = disk_array(scratch, len(shards), bool)
    for part in slices(len(kept)):
        kept[part] = numbers["fits"][part] & _sampled(numbers, part, weights)
    resolve_votes(numbers, kept, scratch, counts)
    asked = disk_array(scratch, len(shards), np.uint64)
    for part in slices(len(asked)):
        prompt = numbers["prompt_hash"][part]
        asked[part] = np.where(prompt != 0, prompt, numbers["first_hash"][part])
    labels = None if near is None else similar_prompts(shards, kept, asked, near, scratch)
    if near is not None:
        counts.duplicates["near"] += drop_copies(shards, kept, labels, near, scratch)
    gives = rows_given(numbers, kept, scratch)
    held = held_out_records(numbers["root"], asked, labels, gives, kept, held_out_fraction, scratch, counts)
    train = rows_of(numbers, kept & ~held, "train", scratch, counts)
    held_out = rows_of(numbers, kept & held, "held_out", scratch, counts)
    if counts.ambiguous_facts:
        counts.warnings.append(
            f"The kept columns of {counted(counts.ambiguous_facts, 'prompt')} differ between its records. Those of the "
            "first record are used"
        )
    return train, held_out, counts


def repeat_counts(numbers: Any, rows: Any, weights: Any) -> Any:
    """Return how many times each row is written.

    A weight up to 1 gives one copy. The fractional part of a larger weight is the share of conversations that get one
    copy more.
    """
    weight = np.maximum(weights[numbers["shard"][rows]], 1.0)
    copies = np.floor(weight)
    return (copies + (_uniform(numbers["root"][rows]) < weight - copies)).astype(np.int64)


def _sampled(numbers: Any, rows: Any, weights: Any) -> Any:
    return _uniform(numbers["root"][rows]) < weights[numbers["shard"][rows]]


def _uniform(roots: Any) -> Any:
    """Return a number in [0, 1) for each conversation, independent of the hash that decides its split."""
    return combine_hashes(roots, np.full(len(roots), 0x5EED)) / 2.0**64
