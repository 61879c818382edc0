"""Resolve votes: of several judgments on the same thing, keep one record of the majority."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from alignment_core.data.dataset.disk_arrays import disk_array, hash_groups, slices
from alignment_core.data.dataset.kinds import FEEDBACK, PREFERENCE
from alignment_core.data.ingestion.counts import SelectionCounts
from alignment_core.data.ingestion.record_parts import combine_hashes


def resolve_votes(numbers: Any, kept: Any, scratch: Path, counts: SelectionCounts) -> None:
    """Clear `kept` for all but one of the records that judge the same thing.

    Only the last vote of a voter counts. The majority decides, and on a tie no record is kept. Duplicates are dropped.
    The numbers are added to `counts`.
    """
    unit = disk_array(scratch, len(kept), np.uint64)
    for part in slices(len(kept)):
        unit[part] = _units(numbers, part)
    for rows in hash_groups(unit, kept):
        kept[rows] = False
        kept[_resolved(numbers, rows, unit[rows], counts)] = True


def _units(numbers: Any, rows: Any) -> Any:
    """Return a hash of what each record judges.

    A pair and its reverse have the same hash, and so do the two labels of a response.
    """
    kind, first, second = numbers["kind"][rows], numbers["first_hash"][rows], numbers["second_hash"][rows]
    paired = kind == PREFERENCE
    low, high = np.where(paired, np.minimum(first, second), first), np.where(paired, np.maximum(first, second), 0)
    return combine_hashes(kind, numbers["prompt_hash"][rows], low, high)


def _sides(numbers: Any, rows: Any) -> Any:
    """Return each record's vote, 1 or -1."""
    kind = numbers["kind"][rows]
    pairs = np.where(numbers["first_hash"][rows] < numbers["second_hash"][rows], 1, -1)
    return np.where(kind == PREFERENCE, pairs, np.where(kind == FEEDBACK, numbers["sign"][rows], 1))


def _resolved(numbers: Any, rows: Any, unit: Any, counts: SelectionCounts) -> Any:
    """Return the records of `rows` to keep. All records that judge the same thing must be in `rows`."""
    order = np.lexsort((rows, numbers["when"][rows], numbers["voter"][rows], unit))
    rows, unit = rows[order], unit[order]
    side, voter = _sides(numbers, rows), numbers["voter"][rows]
    followed = (unit[1:] == unit[:-1]) & (voter[1:] == voter[:-1])
    last = ~np.r_[followed, False] | (voter == 0) if len(rows) else np.zeros(0, dtype=bool)
    counts.votes["superseded"] += int(np.count_nonzero(~last))
    rows, unit, side = rows[last], unit[last], side[last]
    _, group = np.unique(unit, return_inverse=True)
    weight = numbers["weight"][rows]
    up = np.bincount(group, weights=np.where(side > 0, weight, 0.0))
    down = np.bincount(group, weights=np.where(side < 0, weight, 0.0))
    contested, tied = (up > 0) & (down > 0), up == down
    wins = (side == np.sign(up - down)[group]) & ~tied[group]
    counts.votes["contradicting"] += int(np.count_nonzero(contested))
    counts.votes["tied"] += int(np.count_nonzero(tied[group]))
    counts.votes["outvoted"] += int(np.count_nonzero(~wins & ~tied[group]))
    rows, unit = rows[wins], unit[wins]
    order = np.argsort(rows, kind="stable")
    rows, unit = rows[order], unit[order]
    _, firsts = np.unique(unit, return_index=True)
    counts.duplicates["exact"] += len(rows) - len(firsts)
    return rows[np.sort(firsts)]
