"""Keep rows of every kind in training: the split must not hold out all pairs, or all responses of one class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from alignment_core.data.dataset.disk_arrays import disk_array, hash_groups, index_batches, slices
from alignment_core.data.dataset.kinds import DEMONSTRATION, FEEDBACK, PREFERENCE
from alignment_core.data.ingestion.counts import SelectionCounts

GIVES = {"preference pairs": 1, "desirable responses": 2, "undesirable responses": 4, "demonstrations": 8}
"""A bit for each kind of row that a record can give."""
PAIR, UP, DOWN, SHOWN = GIVES.values()


def rows_given(numbers: Any, kept: Any, scratch: Path) -> Any:
    """Return the bits of `GIVES` for each record, shape (records,). Records that are not kept do not matter.

    Args:
        numbers: `Shards.numbers`.
        kept: which records are used, shape (records,).
        scratch: a folder for temporary files.
    """
    gives = disk_array(scratch, len(kept), np.uint8)
    for part in slices(len(kept)):
        kind, sign = numbers["kind"][part], numbers["sign"][part]
        liked, disliked = (kind == FEEDBACK) & (sign > 0), (kind == FEEDBACK) & (sign < 0)
        pairs = (kind == PREFERENCE) * np.uint8(PAIR | UP | DOWN | SHOWN)
        shown = (kind == DEMONSTRATION) * np.uint8(SHOWN)
        gives[part] = pairs | shown | liked * np.uint8(UP | SHOWN) | disliked * np.uint8(DOWN)
    for rows in hash_groups(numbers["prompt_hash"], kept):  # opposite labels on one prompt give a pair
        _, group = np.unique(numbers["prompt_hash"][rows], return_inverse=True)
        up, down = (np.bincount(group, weights=gives[rows] & bit) > 0 for bit in (UP, DOWN))
        both = rows[(up & down)[group]]
        gives[both] |= np.uint8(PAIR)
    return gives


def keep_in_training(units: Any, gives: Any, kept: Any, held: Any, counts: SelectionCounts) -> None:
    """Take conversations out of the held-out split until training has a row of every kind that the data have.

    If nothing would be held out then, another conversation is held out instead, where training can do without it.

    Args:
        units: hash of each record's conversation, the lowest of which are held out, shape (records,).
        gives: from `rows_given`.
        kept: which records are used, shape (records,).
        held: which records are held out, shape (records,). It is changed.
        counts: receives a warning.
    """
    changed = False
    for name, bit in GIVES.items():
        if _gives(gives, bit, kept, held, True) and not _gives(gives, bit, kept, held, False):
            _hold_out(units, kept, held, _last_unit(units, gives, bit, kept, held), False)
            counts.warnings.append(
                f"All {name} would have been held out, so that one conversation with them is kept in training"
            )
            changed = True
    if changed and not any(bool((kept[part] & held[part]).any()) for part in slices(len(kept))):
        _hold_out_another(units, gives, kept, held)


def _hold_out_another(units: Any, gives: Any, kept: Any, held: Any) -> None:
    for unit in _units(units, kept):
        _hold_out(units, kept, held, unit, True)
        lost = (bit for bit in GIVES.values() if _gives(gives, bit, kept, held, True))
        if all(_gives(gives, bit, kept, held, False) for bit in lost):
            return
        _hold_out(units, kept, held, unit, False)


def _gives(gives: Any, bit: int, kept: Any, held: Any, held_out: bool) -> bool:
    """Return whether a record of one split gives a row of a kind."""
    parts = slices(len(kept))
    return any(bool((gives[part][kept[part] & (held[part] == held_out)] & bit).any()) for part in parts)


def _last_unit(units: Any, gives: Any, bit: int, kept: Any, held: Any) -> int:
    """Return the held-out conversation with rows of a kind that is closest to the limit of the split."""
    highest = 0
    for part in slices(len(kept)):
        found = units[part][kept[part] & held[part] & ((gives[part] & bit) > 0)]
        highest = max(highest, int(found.max(initial=0)))
    return highest


def _hold_out(units: Any, kept: Any, held: Any, unit: int, held_out: bool) -> None:
    for part in slices(len(kept)):
        held[part] = np.where(kept[part] & (units[part] == np.uint64(unit)), held_out, held[part])


def _units(units: Any, kept: Any) -> Iterator[int]:
    """Yield the conversations in the order in which they would be held out."""
    found = np.unique(np.concatenate([np.unique(units[part]) for part in index_batches(kept)]))
    yield from found.tolist()
