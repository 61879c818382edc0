"""Convert records to the rows of a split: the records as given, and what they imply for other kinds of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignment_core.data.dataset.disk_arrays import (
    DiskColumns,
    collect_columns,
    disk_array,
    hash_groups,
    index_batches,
    slices,
)
from alignment_core.data.dataset.kinds import DEMONSTRATION, FEEDBACK, PREFERENCE, PROMPT
from alignment_core.data.ingestion.counts import SelectionCounts
from alignment_core.data.ingestion.record_parts import combine_hashes


@dataclass(frozen=True)
class Chosen:
    """The rows of one split, as indices of records in `Shards`. Each array has one entry per row.

    Attributes:
        demonstrations: record.
        preferences: record of the chosen response, record of the rejected one (the same if the pair was given).
        feedback: record, side (0: `first`, 1: `second`), sign (1: desirable, -1: undesirable).
        prompts: record.
    """

    demonstrations: Any
    preferences: tuple[Any, Any]
    feedback: tuple[Any, Any, Any]
    prompts: Any


def rows_of(numbers: Any, chosen: Any, split: str, scratch: Path, counts: SelectionCounts) -> Chosen:
    """Return the rows that the records of a split give.

    Args:
        numbers: `Shards.numbers`.
        chosen: whether each record is in this split, shape (records,).
        split: name of the split, the key in `counts.conversions`.
        scratch: a folder for temporary files.
        counts: receives the number of rows of every conversion.
    """
    shown, asked = (disk_array(scratch, len(chosen), bool) for _ in range(2))
    signs = disk_array(scratch, (len(chosen), 2), np.int8)
    paired = DiskColumns(scratch)
    none = np.zeros(0, dtype=np.int64)
    paired.append(good=none, bad=none)
    conversions: Counter[str] = Counter()
    for record in index_batches(chosen & (numbers["kind"] == PREFERENCE)):
        paired.append(good=record, bad=record)
    for rows in hash_groups(numbers["prompt_hash"], chosen):
        kind = numbers["kind"][rows]
        given = {name: rows[kind == value] for name, value in _GIVEN.items()}
        good, bad = _pairs_of_opposites(numbers, given["feedback"], given["preferences"])
        paired.append(good=good, bad=bad)
        derived = _labels_of_pairs(numbers, given["preferences"], given["feedback"], counts)
        signs[given["feedback"], 0] = numbers["sign"][given["feedback"]]
        signs[derived[0], derived[1]] = derived[2]
        liked = np.r_[given["feedback"][numbers["sign"][given["feedback"]] > 0], derived[0][derived[2] > 0]]
        imitated = _imitated(numbers, given["demonstrations"], liked)
        shown[np.r_[given["demonstrations"], imitated]] = True
        prompts = _prompts(numbers, rows, counts)
        asked[prompts] = True
        given_prompts = int(np.count_nonzero(numbers["kind"][prompts] == PROMPT))
        conversions.update(
            {
                "demonstrations given": len(given["demonstrations"]),
                "demonstrations from chosen sides and desirable responses": len(imitated),
                "preferences given": len(given["preferences"]),
                "preferences from opposite labels on one prompt": len(good),
                "feedback given": len(given["feedback"]),
                "feedback from the two sides of pairs": len(derived[0]),
                "prompts given": given_prompts,
                "prompts of other records": len(prompts) - given_prompts,
            }
        )
    counts.conversions[split] = conversions
    pairs = paired.arrays()
    feedback = collect_columns(scratch, {"record": np.int64, "side": np.int64, "sign": np.int64}, _labels(signs))
    return Chosen(
        demonstrations=_indices(shown, scratch),
        preferences=(pairs["good"], pairs["bad"]),
        feedback=(feedback["record"], feedback["side"], feedback["sign"]),
        prompts=_indices(asked, scratch),
    )


def _prompts(numbers: Any, rows: Any, counts: SelectionCounts) -> Any:
    """Return one record per prompt: the first one with facts, or else the first one."""
    prompt, facts = numbers["prompt_hash"][rows], numbers["facts_hash"][rows]
    order = np.lexsort((np.arange(len(rows)), facts == 0, prompt))
    found, firsts = np.unique(prompt[order], return_index=True)
    known = (facts != 0) & (prompt != 0)
    several = np.unique(np.stack([prompt[known], facts[known]]), axis=1)[0]
    counts.ambiguous_facts += int(np.count_nonzero(np.unique(several, return_counts=True)[1] > 1))
    return np.sort(rows[order[firsts[found != 0]]])


def _indices(mask: Any, scratch: Path) -> Any:
    return collect_columns(scratch, {"record": np.int64}, ({"record": part} for part in index_batches(mask)))["record"]


def _labels(signs: Any) -> Iterator[dict[str, Any]]:
    for part in slices(len(signs)):
        record, side = np.nonzero(signs[part])
        yield {"record": part.start + record, "side": side, "sign": signs[part][record, side]}


_GIVEN = {"demonstrations": DEMONSTRATION, "preferences": PREFERENCE, "feedback": FEEDBACK}


def _pairs_of_opposites(numbers: Any, labelled: Any, pairs: Any) -> tuple[Any, Any]:
    """Return records that form a pair: a desirable and an undesirable response to one prompt.

    Each response of the larger class is used once. Pairs that were given are left out.
    """
    order = labelled[np.argsort(numbers["prompt_hash"][labelled], kind="stable")]
    _, group = np.unique(numbers["prompt_hash"][order], return_inverse=True)
    liked = numbers["sign"][order] > 0
    both = (np.bincount(group, weights=liked) > 0) & (np.bincount(group, weights=~liked) > 0)
    order, group = order[both[group]], group[both[group]]
    good: list[Any] = [np.zeros(0, dtype=np.int64)]
    bad: list[Any] = [np.zeros(0, dtype=np.int64)]
    for members in np.split(order, np.flatnonzero(np.diff(group)) + 1) if len(order) else []:
        up, down = members[numbers["sign"][members] > 0], members[numbers["sign"][members] < 0]
        turns = np.arange(max(len(up), len(down)))
        good.append(up[turns % len(up)])
        bad.append(down[turns % len(down)])
    chosen, rejected = np.concatenate(good), np.concatenate(bad)
    given = _pair_units(numbers, pairs, pairs, "second_hash")
    new = ~np.isin(_pair_units(numbers, chosen, rejected, "first_hash"), given)
    return chosen[new], rejected[new]


def _pair_units(numbers: Any, chosen: Any, rejected: Any, column: str) -> Any:
    """Return a hash of each pair that does not depend on the order of its responses."""
    first, second = numbers["first_hash"][chosen], numbers[column][rejected]
    return combine_hashes(numbers["prompt_hash"][chosen], np.minimum(first, second), np.maximum(first, second))


def _labels_of_pairs(numbers: Any, pairs: Any, labelled: Any, counts: SelectionCounts) -> tuple[Any, Any, Any]:
    """Return record, side and sign of the responses in pairs.

    A response is desirable if it won more often than it lost, and undesirable if it lost more often. Tied responses
    and responses that have a label already are left out.
    """
    record, side = np.r_[pairs, pairs], np.repeat([0, 1], len(pairs))
    response = np.where(side == 0, numbers["first_hash"][record], numbers["second_hash"][record])
    unit = combine_hashes(numbers["prompt_hash"][record], response)
    new = ~np.isin(unit, combine_hashes(numbers["prompt_hash"][labelled], numbers["first_hash"][labelled]))
    record, side, unit = record[new], side[new], unit[new]
    vote = 1 - 2 * side
    _, group = np.unique(unit, return_inverse=True)
    verdict = np.sign(np.bincount(group, weights=vote)).astype(np.int64)
    counts.votes["as often chosen as rejected"] += int(np.count_nonzero(verdict == 0))
    order = np.argsort(record, kind="stable")
    order = order[vote[order] == verdict[group[order]]]
    _, firsts = np.unique(group[order], return_index=True)
    found = order[np.sort(firsts)]
    return record[found], side[found], vote[found]


def _imitated(numbers: Any, demonstrations: Any, liked: Any) -> Any:
    """Return the records of `liked` whose response is not a demonstration yet."""
    existing = combine_hashes(numbers["prompt_hash"][demonstrations], numbers["first_hash"][demonstrations])
    return liked[~np.isin(combine_hashes(numbers["prompt_hash"][liked], numbers["first_hash"][liked]), existing)]
