"""Hold out a share of the conversations. Records of one conversation, and near-duplicates, are on the same side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from alignment_core.data.dataset.disk_arrays import disk_array, hash_groups, index_batches, slices
from alignment_core.data.ingestion.counts import SelectionCounts
from alignment_core.data.ingestion.record_parts import combine_hashes
from alignment_core.data.ingestion.selection.rare_rows import keep_in_training
from alignment_core.texts import percent

HASHES = 2**64
FEW = 10
"""This many records with similar prompts are always on the same side, unless they are more than half of all."""


def held_out_records(
    roots: Any, asked: Any, labels: Any, gives: Any, kept: Any, fraction: float, scratch: Path, counts: SelectionCounts
) -> Any:
    """Return which records are held out, shape (records,). The records that are not kept do not matter.

    A hash decides, so adding records moves another record only if they are near-duplicates, or if training had no row
    of a kind without it.

    Args:
        roots: a hash of each record's conversation, shape (records,).
        asked: a hash of each record's prompt, shape (records,).
        labels: equal where prompts are near-duplicates, shape (records,). None: only equal prompts stay together.
        gives: the kinds of rows that each record can give, from `rows_given`.
        kept: which records are used, shape (records,).
        fraction: share of the conversations to hold out.
        scratch: a folder for temporary files.
        counts: receives warnings.
    """
    total = int(np.count_nonzero(kept))
    units = disk_array(scratch, len(kept), np.uint64)
    for part in slices(len(kept)):
        units[part] = roots[part]
    groupings = [roots, asked]
    if labels is not None:
        similar, few = (disk_array(scratch, len(kept), np.uint64) for _ in range(2))
        for part in slices(len(kept)):
            similar[part] = few[part] = combine_hashes(labels[part])
        _separate(few, asked, kept, min(max(fraction * total, FEW), total / 2))
        groupings.append(few)
    _join(units, groupings, kept)
    for part in slices(len(kept)):
        units[part] = combine_hashes(units[part])  # the lowest hash of several would be low
    limit = _limit(units, kept, fraction, counts)
    held = disk_array(scratch, len(kept), bool)
    for part in slices(len(kept)):
        held[part] = units[part] < np.uint64(limit)
    keep_in_training(units, gives, kept, held, counts)
    if labels is not None:
        _warn_of_templates(similar, kept, held, counts)
    if limit:
        _warn_of_share(units, kept, held, fraction, counts)
    return held


def _separate(similar: Any, asked: Any, kept: Any, most: float) -> None:
    """Replace the hash of each group of more than `most` records by the hash of their prompts."""
    for rows in hash_groups(similar, kept):
        _, which, sizes = np.unique(similar[rows], return_inverse=True, return_counts=True)
        large = rows[sizes[which] > most]
        similar[large] = asked[large]


def _join(units: Any, groupings: list[Any], kept: Any) -> None:
    """Give all records that are equal in one of the groupings the same unit: the lowest of theirs."""
    changed = True
    while changed:
        changed = False
        for keys in groupings:
            for rows in hash_groups(keys, kept):
                order = np.argsort(keys[rows], kind="stable")
                rows, key = rows[order], keys[rows][order]
                starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
                lowest = np.repeat(np.minimum.reduceat(units[rows], starts), np.diff(np.r_[starts, len(rows)]))
                if (units[rows] != lowest).any():
                    units[rows] = lowest
                    changed = True


def _limit(units: Any, kept: Any, fraction: float, counts: SelectionCounts) -> int:
    """Return the hash below which a conversation is held out.

    It is a fixed fraction of all hashes, so adding records moves no conversation to the other split. It is adjusted
    only where a split would be empty.
    """
    lowest, highest = HASHES, -1
    for part in index_batches(kept):
        lowest, highest = min(lowest, int(units[part].min())), max(highest, int(units[part].max()))
    limit = min(int(fraction * HASHES), HASHES - 1)
    if lowest >= highest:
        if lowest == highest:
            counts.warnings.append(
                "Nothing is held out, because all records have the same prompt or are near-duplicates, and count as "
                "one conversation"
            )
        return 0
    return lowest + 1 if lowest >= limit else min(limit, highest)


def _warn_of_templates(similar: Any, kept: Any, held: Any, counts: SelectionCounts) -> None:
    """Warn if training prompts resemble held-out ones, because there are too many to keep them on one side."""
    apart = 0
    for rows in hash_groups(similar, kept):
        group, train = similar[rows], ~held[rows]
        both = np.intersect1d(group[train], group[~train])
        apart += int(np.count_nonzero(np.isin(group, both) & train))
    if apart:
        counts.warnings.append(
            f"Held-out results partly measure memorization: the prompts of {apart} of "
            f"{int(np.count_nonzero(kept & ~held))} training records closely resemble held-out prompts, probably "
            "because of a shared template"
        )


def _warn_of_share(units: Any, kept: Any, held: Any, fraction: float, counts: SelectionCounts) -> None:
    """Warn if the share of held-out records differs more from the one asked for than chance explains."""
    total, found = int(np.count_nonzero(kept)), int(np.count_nonzero(kept & held))
    if abs(found - fraction * total) <= 1 + 3 * (fraction * (1 - fraction) * total) ** 0.5:
        return
    largest = 0
    for rows in hash_groups(units, kept):
        largest = max(largest, int(np.unique(units[rows], return_counts=True)[1].max()))
    counts.warnings.append(
        f"Held out {found} of {total} records ({percent(found / total)}), although data.held_out_fraction is "
        f"{percent(fraction)}: records with the same prompt and near-duplicates stay together, and up to {largest} do "
        "so"
    )
