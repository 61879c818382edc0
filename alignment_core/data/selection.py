"""What is decided across files: votes, duplicates, the split, and which rows each record gives.

Everything here works on the numeric columns of `Shards`, arrays of one number per record; texts are fetched only
for records that look like near-duplicates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from alignment_core.data.near import clusters, near_copies, resembling
from alignment_core.data.parts import DEMONSTRATION, FEEDBACK, PREFERENCE
from alignment_core.data.shards import Shards

MOSTLY = 0.5
"""Where more of the training prompts than this resemble held-out ones, the prompts are a template, not leaks."""


@dataclass(frozen=True)
class Chosen:
    """The rows of one split, as places in `Shards`; each array has one entry per row.

    Attributes:
        demonstrations: record.
        preferences: record of the chosen side, record of the rejected side (the same one in a pair that was given).
        feedback: record, side (0 `first`, 1 `second`), sign (1, -1).
        prompts: record.
    """

    demonstrations: Any
    preferences: tuple[Any, Any]
    feedback: tuple[Any, Any, Any]
    prompts: Any


@dataclass
class Facts:
    """What was found and decided, in numbers of records, for the report."""

    votes: Counter[str] = field(default_factory=Counter)
    duplicates: Counter[str] = field(default_factory=Counter)
    conversions: dict[str, Counter[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


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
    facts = Facts()
    numbers = shards.numbers
    rows = np.flatnonzero(numbers["fits"] & _sampled(numbers, weights))
    rows = _resolved(numbers, rows, facts)
    held = _held_out(numbers["root"][rows], held_out_fraction, facts)
    if near is not None and len(rows):
        keep = _without_near_duplicates(shards, rows, held, near, scratch, facts)
        rows, held = rows[keep], held[keep]
    splits = [_rows_of(numbers, rows[part], name, facts) for part, name in ((~held, "train"), (held, "held_out"))]
    return splits[0], splits[1], facts


def repeats(numbers: Any, rows: Any, weights: Any) -> Any:
    """How often each row is written: once, or as often as its source's weight says."""
    weight = np.maximum(weights[numbers["shard"][rows]], 1.0)
    whole = np.floor(weight)
    return (whole + (_uniform(numbers["root"][rows]) < weight - whole)).astype(np.int64)


def mixed(*columns: Any) -> Any:
    """One 64-bit hash per row from several."""
    state = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        state = (state ^ column.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
        state = state ^ (state >> np.uint64(31))
    return state


# --- votes ---------------------------------------------------------------------------------------------------------


def _resolved(numbers: Any, rows: Any, facts: Facts) -> Any:
    """`rows` with one record per judgement: a voter's last vote, the majority's verdict, no copies."""
    kind, first, second = numbers["kind"][rows], numbers["first_hash"][rows], numbers["second_hash"][rows]
    prompt = numbers["prompt_hash"][rows]
    paired = kind == PREFERENCE
    # A pair and its reverse are one question with two answers, as a response and its two labels are.
    side = np.where(paired, np.where(first < second, 1, -1), np.where(kind == FEEDBACK, numbers["sign"][rows], 1))
    low, high = np.where(paired, np.minimum(first, second), first), np.where(paired, np.maximum(first, second), 0)
    unit = mixed(kind, prompt, low, high)
    order = np.lexsort((rows, numbers["when"][rows], numbers["voter"][rows], unit))
    rows, unit, side = rows[order], unit[order], side[order]
    voter = numbers["voter"][rows]
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


# --- split and duplicates ------------------------------------------------------------------------------------------


def _held_out(roots: Any, fraction: float, facts: Facts) -> Any:
    """Which records are held out: those whose conversation's hash is low. Other records change nothing about that."""
    distinct = np.unique(roots)
    held = roots < np.uint64(min(int(fraction * 2**64), 2**64 - 1))
    if len(distinct) < 2:
        if len(distinct):
            facts.warnings.append("All records start the same conversation: nothing is held out")
        return np.zeros(len(roots), dtype=bool)
    if not held.any():
        return roots == distinct[0]
    return roots != distinct[-1] if held.all() else held


def _without_near_duplicates(
    shards: Shards, rows: Any, held: Any, threshold: float, scratch: Path, facts: Facts
) -> Any:
    """Which rows stay: no training prompt like a held-out one, and no answer like an earlier one to a like prompt."""
    numbers = shards.numbers
    asked = np.where(numbers["prompt_hash"][rows] != 0, numbers["prompt_hash"][rows], numbers["first_hash"][rows])
    _, firsts, which = np.unique(asked, return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))
    unique = rows[firsts[order]]
    columns = np.where(numbers["prompt_hash"][unique] != 0, "prompt", "first").tolist()

    def prompt_text(place: int) -> str:
        return shards.text(int(unique[place]), columns[place])

    labels = clusters(shards.signatures(unique, scratch), prompt_text, threshold)
    held_prompts = np.zeros(len(unique), dtype=bool)
    held_prompts[places[which[held]]] = True
    leaks = _leaks(labels, held_prompts, prompt_text, threshold)[places[which]] & ~held
    if np.count_nonzero(leaks) > MOSTLY * np.count_nonzero(~held):
        facts.warnings.append(
            f"{np.count_nonzero(leaks)} of {np.count_nonzero(~held)} training records have a prompt much like a "
            "held-out one (a template with small changes?); they stay, so held-out results partly measure memory"
        )
        leaks[:] = False
    facts.duplicates["like_held_out"] += int(np.count_nonzero(leaks))
    keep = ~leaks
    copies = _copies(shards, rows[keep], labels[places[which[keep]]], threshold)
    facts.duplicates["near"] += len(copies)
    keep[np.flatnonzero(keep)[copies]] = False
    return keep


def _leaks(labels: Any, held: Any, text: Callable[[int], str], threshold: float) -> Any:
    """Which prompts of the training split are near-duplicates of a held-out one."""
    leaks = np.zeros(len(labels), dtype=bool)
    suspects = np.flatnonzero(np.isin(labels, labels[held]) & np.isin(labels, labels[~held]))
    for label in np.unique(labels[suspects]).tolist():
        members = suspects[labels[suspects] == label]
        ours, theirs = members[~held[members]], members[held[members]]
        leaks[ours] = resembling([text(i) for i in ours.tolist()], [text(i) for i in theirs.tolist()], threshold)
    return leaks


def _copies(shards: Shards, rows: Any, cluster: Any, threshold: float) -> list[int]:
    """Places in `rows` of records whose prompt and completions are near-duplicates of an earlier record's."""
    numbers = shards.numbers
    group = mixed(numbers["kind"][rows], numbers["sign"][rows].astype(np.int64) + 1, cluster)
    _, which, counts = np.unique(group, return_inverse=True, return_counts=True)
    candidates = np.flatnonzero((counts[which] > 1) & (numbers["first_hash"][rows] != 0))
    texts = [(shards.text(i, "prompt"), shards.text(i, "first", "second")) for i in rows[candidates].tolist()]
    return candidates[near_copies(group[candidates].tolist(), texts, threshold)].tolist()  # type: ignore[no-any-return]


# --- from records to rows ------------------------------------------------------------------------------------------


def _rows_of(numbers: Any, rows: Any, split: str, facts: Facts) -> Chosen:
    kind, prompt = numbers["kind"][rows], numbers["prompt_hash"][rows]
    given = {name: rows[kind == value] for name, value in _GIVEN.items()}
    good, bad = _pairs_of_opposites(numbers, given["feedback"], given["preferences"])
    derived = _labels_of_pairs(numbers, given["preferences"], given["feedback"], split, facts)
    feedback = (
        np.r_[given["feedback"], derived[0]],
        np.r_[np.zeros(len(given["feedback"]), dtype=np.int64), derived[1]],
        np.r_[numbers["sign"][given["feedback"]].astype(np.int64), derived[2]],
    )
    imitated = _imitated(numbers, given["demonstrations"], feedback)
    _, firsts = np.unique(prompt, return_index=True)
    prompts = np.sort(firsts[prompt[firsts] != 0])
    facts.conversions[split] = Counter(
        {
            "demonstrations given": len(given["demonstrations"]),
            "demonstrations from chosen sides and desirable responses": len(imitated),
            "preferences given": len(given["preferences"]),
            "preferences from opposite labels on one prompt": len(good),
            "feedback given": len(given["feedback"]),
            "feedback from the two sides of pairs": len(derived[0]),
            "prompts given": int(np.count_nonzero(np.isin(rows[prompts], rows[kind == 3]))),
            "prompts of other records": int(np.count_nonzero(~np.isin(rows[prompts], rows[kind == 3]))),
        }
    )
    order = np.argsort(feedback[0], kind="stable")
    return Chosen(
        demonstrations=np.sort(np.r_[given["demonstrations"], imitated]),
        preferences=(np.r_[given["preferences"], good], np.r_[given["preferences"], bad]),
        feedback=(feedback[0][order], feedback[1][order], feedback[2][order]),
        prompts=rows[prompts],
    )


_GIVEN = {"demonstrations": DEMONSTRATION, "preferences": PREFERENCE, "feedback": FEEDBACK}


def _pairs_of_opposites(numbers: Any, labelled: Any, pairs: Any) -> tuple[Any, Any]:
    """Records of liked and disliked responses to one prompt, each response of the larger side used once."""
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
    first, second = numbers["first_hash"][chosen], numbers[column][rejected]
    return mixed(numbers["prompt_hash"][chosen], np.minimum(first, second), np.maximum(first, second))


def _labels_of_pairs(numbers: Any, pairs: Any, labelled: Any, split: str, facts: Facts) -> tuple[Any, Any, Any]:
    """Record, side and sign of each response in a pair: liked where it won more often than it lost."""
    record, side = np.r_[pairs, pairs], np.repeat([0, 1], len(pairs))
    response = np.where(side == 0, numbers["first_hash"][record], numbers["second_hash"][record])
    unit = mixed(numbers["prompt_hash"][record], response)
    new = ~np.isin(unit, mixed(numbers["prompt_hash"][labelled], numbers["first_hash"][labelled]))
    record, side, unit = record[new], side[new], unit[new]
    vote = 1 - 2 * side
    _, group = np.unique(unit, return_inverse=True)
    verdict = np.sign(np.bincount(group, weights=vote)).astype(np.int64)
    facts.votes["as often chosen as rejected"] += int(np.count_nonzero(verdict == 0))
    order = np.argsort(record, kind="stable")
    order = order[vote[order] == verdict[group[order]]]
    _, firsts = np.unique(group[order], return_index=True)
    found = order[np.sort(firsts)]
    return record[found], side[found], vote[found]


def _imitated(numbers: Any, demonstrations: Any, feedback: tuple[Any, Any, Any]) -> Any:
    """Records whose liked response is no demonstration yet."""
    record = feedback[0][feedback[2] > 0]
    known = mixed(numbers["prompt_hash"][demonstrations], numbers["first_hash"][demonstrations])
    return record[~np.isin(mixed(numbers["prompt_hash"][record], numbers["first_hash"][record]), known)]


# --- weights -------------------------------------------------------------------------------------------------------


def _sampled(numbers: Any, weights: Any) -> Any:
    return _uniform(numbers["root"]) < weights[numbers["shard"]]


def _uniform(roots: Any) -> Any:
    """A number in [0, 1) for each conversation, independent of the one that splits."""
    return mixed(roots, np.full(len(roots), 0x5EED)) / 2.0**64
