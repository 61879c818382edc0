"""Votes: of several judgements on one thing one record stays, the majority's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from alignment_core.data.facts import Facts
from alignment_core.data.ondisk import by_hash, in_parts, on_disk
from alignment_core.data.parts import FEEDBACK, PREFERENCE, mixed


def resolve(numbers: Any, kept: Any, scratch: Path, facts: Facts) -> None:
    """Clear `kept` of all but one record per judgement: a voter's last vote, the majority's verdict, no copies."""
    unit = on_disk(scratch, len(kept), np.uint64)
    for part in in_parts(len(kept)):
        unit[part] = _units(numbers, part)
    for rows in by_hash(unit, kept):
        kept[rows] = False
        kept[_resolved(numbers, rows, unit[rows], facts)] = True


def _units(numbers: Any, rows: Any) -> Any:
    """A hash of what each record judges: a pair and its reverse are one question with two answers, as a response and
    its two labels are."""
    kind, first, second = numbers["kind"][rows], numbers["first_hash"][rows], numbers["second_hash"][rows]
    paired = kind == PREFERENCE
    low, high = np.where(paired, np.minimum(first, second), first), np.where(paired, np.maximum(first, second), 0)
    return mixed(kind, numbers["prompt_hash"][rows], low, high)


def _sides(numbers: Any, rows: Any) -> Any:
    kind = numbers["kind"][rows]
    pairs = np.where(numbers["first_hash"][rows] < numbers["second_hash"][rows], 1, -1)
    return np.where(kind == PREFERENCE, pairs, np.where(kind == FEEDBACK, numbers["sign"][rows], 1))


def _resolved(numbers: Any, rows: Any, unit: Any, facts: Facts) -> Any:
    """The records of `rows` that stay; all that judge the same thing are among them."""
    order = np.lexsort((rows, numbers["when"][rows], numbers["voter"][rows], unit))
    rows, unit = rows[order], unit[order]
    side, voter = _sides(numbers, rows), numbers["voter"][rows]
    followed = (unit[1:] == unit[:-1]) & (voter[1:] == voter[:-1])
    last = ~np.r_[followed, False] | (voter == 0) if len(rows) else np.zeros(0, dtype=bool)
    facts.votes["superseded"] += int(np.count_nonzero(~last))
    rows, unit, side = rows[last], unit[last], side[last]
    _, group = np.unique(unit, return_inverse=True)
    weight = numbers["weight"][rows]
    up = np.bincount(group, weights=np.where(side > 0, weight, 0.0))
    down = np.bincount(group, weights=np.where(side < 0, weight, 0.0))
    contested, tied = (up > 0) & (down > 0), up == down
    wins = (side == np.sign(up - down)[group]) & ~tied[group]
    facts.votes["contradicting"] += int(np.count_nonzero(contested))
    facts.votes["tied"] += int(np.count_nonzero(tied[group]))
    facts.votes["outvoted"] += int(np.count_nonzero(~wins & ~tied[group]))
    rows, unit = rows[wins], unit[wins]
    order = np.argsort(rows, kind="stable")
    rows, unit = rows[order], unit[order]
    _, firsts = np.unique(unit, return_index=True)
    facts.duplicates["exact"] += len(rows) - len(firsts)
    return rows[np.sort(firsts)]
