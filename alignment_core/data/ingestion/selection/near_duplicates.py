"""Find near-duplicates: prompts that resemble each other, and records that repeat an earlier one."""

from __future__ import annotations

from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np

from alignment_core.data.dataset.disk_arrays import disk_array, hash_groups, index_batches, slices
from alignment_core.data.ingestion.minhash import clusters, near_duplicate_items
from alignment_core.data.ingestion.record_parts import combine_hashes
from alignment_core.data.ingestion.shards import Shards
from alignment_core.data.sources.parsing.grouping import Groups


def similar_prompts(shards: Shards, kept: Any, asked: Any, threshold: float, scratch: Path) -> Any:
    """Return a label for each record, equal where prompts are near-duplicates of each other, shape (records,), int64.

    Args:
        shards: all records.
        kept: which of them are used, shape (records,).
        asked: a hash of each record's prompt, or of its completion if it has no prompt, shape (records,).
        threshold: minimum Jaccard similarity of near-duplicates.
        scratch: a folder for temporary files.
    """
    numbers = shards.numbers
    first = disk_array(scratch, len(kept), np.int64)
    for rows in hash_groups(asked, kept):
        _, firsts, which = np.unique(asked[rows], return_index=True, return_inverse=True)
        first[rows] = rows[firsts][which]
    asking = disk_array(scratch, len(kept), bool)
    for part in slices(len(kept)):
        asking[part] = kept[part] & (first[part] == np.arange(part.start, part.stop))

    def prompt_text(record: int) -> str:
        return shards.text(record, "prompt" if numbers["prompt_hash"][record] else "first")

    labels = clusters(shards.signatures(asking, scratch), asking, prompt_text, threshold, scratch)
    for part in slices(len(kept)):
        labels[part] = labels[first[part]]
    return labels


def drop_copies(shards: Shards, kept: Any, labels: Any, threshold: float, scratch: Path) -> int:
    """Clear `kept` for records that repeat an earlier one: both the prompt and the completions are near-duplicates.

    Args:
        shards: all records.
        kept: which of them are used, shape (records,).
        labels: from `similar_prompts`.
        threshold: minimum Jaccard similarity of near-duplicates.
        scratch: a folder for temporary files.

    Returns:
        The number of dropped records.
    """
    group = disk_array(scratch, len(kept), np.uint64)
    for part in slices(len(kept)):
        signs = shards.numbers["sign"][part].astype(np.int64) + 1
        group[part] = combine_hashes(shards.numbers["kind"][part], signs, labels[part])
    copies = _copies(shards, kept, group, threshold, scratch)
    kept &= ~copies
    return int(np.count_nonzero(copies))


def _copies(shards: Shards, kept: Any, group: Any, threshold: float, scratch: Path) -> Any:
    """Return which records repeat an earlier record of their group, in prompt and completions."""
    candidates = disk_array(scratch, len(kept), bool)
    for rows in hash_groups(group, kept):
        _, which, counts = np.unique(group[rows], return_inverse=True, return_counts=True)
        candidates[rows] = (counts[which] > 1) & (shards.numbers["first_hash"][rows] != 0)
    copies = disk_array(scratch, len(kept), bool)
    with Groups() as waiting:
        for part in index_batches(candidates):
            for index in part.tolist():
                texts = shards.text(index, "prompt"), shards.text(index, "first", "second")
                waiting.add(str(group[index]), str(index), texts)
        rows, again = tee(waiting.rows())
        for (_, index, _), copy in zip(
            rows, near_duplicate_items(((key, texts) for key, _, texts in again), threshold), strict=True
        ):
            copies[int(index)] = copy
    return copies
