"""From records to the rows of a split: what is given, and what one kind of supervision says in another's terms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignment_core.data.facts import Facts
from alignment_core.data.ondisk import Spool, by_hash, in_parts, on_disk, places, spooled
from alignment_core.data.parts import DEMONSTRATION, FEEDBACK, PREFERENCE, PROMPT, mixed


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


def rows_of(numbers: Any, chosen: Any, split: str, scratch: Path, facts: Facts) -> Chosen:
    """The rows that records give.

    Args:
        numbers: of `Shards`.
        chosen: whether a record is in this split, shape (records,).
        split: its name in `facts`.
        scratch: a folder for temporary files.
        facts: is told of every conversion.
    """
    shown, asked = (on_disk(scratch, len(chosen), bool) for _ in range(2))
    signs = on_disk(scratch, (len(chosen), 2), np.int8)
    paired = Spool(scratch)
    none = np.zeros(0, dtype=np.int64)
    paired.append(good=none, bad=none)
    counts: Counter[str] = Counter()
    for record in places(chosen & (numbers["kind"] == PREFERENCE)):
        paired.append(good=record, bad=record)
    for rows in by_hash(numbers["prompt_hash"], chosen):
        kind = numbers["kind"][rows]
        given = {name: rows[kind == value] for name, value in _GIVEN.items()}
        good, bad = _pairs_of_opposites(numbers, given["feedback"], given["preferences"])
        paired.append(good=good, bad=bad)
        derived = _labels_of_pairs(numbers, given["preferences"], given["feedback"], facts)
        signs[given["feedback"], 0] = numbers["sign"][given["feedback"]]
        signs[derived[0], derived[1]] = derived[2]
        liked = np.r_[given["feedback"][numbers["sign"][given["feedback"]] > 0], derived[0][derived[2] > 0]]
        imitated = _imitated(numbers, given["demonstrations"], liked)
        shown[np.r_[given["demonstrations"], imitated]] = True
        prompt = numbers["prompt_hash"][rows]
        _, firsts = np.unique(prompt, return_index=True)
        prompts = rows[firsts[prompt[firsts] != 0]]
        asked[prompts] = True
        given_prompts = int(np.count_nonzero(numbers["kind"][prompts] == PROMPT))
        counts.update(
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
    facts.conversions[split] = counts
    pairs = paired.arrays()
    feedback = spooled(scratch, {"record": np.int64, "side": np.int64, "sign": np.int64}, _labels(signs))
    return Chosen(
        demonstrations=_indices(shown, scratch),
        preferences=(pairs["good"], pairs["bad"]),
        feedback=(feedback["record"], feedback["side"], feedback["sign"]),
        prompts=_indices(asked, scratch),
    )


def _indices(mask: Any, scratch: Path) -> Any:
    return spooled(scratch, {"record": np.int64}, ({"record": part} for part in places(mask)))["record"]


def _labels(signs: Any) -> Iterator[dict[str, Any]]:
    for part in in_parts(len(signs)):
        record, side = np.nonzero(signs[part])
        yield {"record": part.start + record, "side": side, "sign": signs[part][record, side]}


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


def _labels_of_pairs(numbers: Any, pairs: Any, labelled: Any, facts: Facts) -> tuple[Any, Any, Any]:
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


def _imitated(numbers: Any, demonstrations: Any, liked: Any) -> Any:
    """Records whose liked response is no demonstration yet."""
    known = mixed(numbers["prompt_hash"][demonstrations], numbers["first_hash"][demonstrations])
    return liked[~np.isin(mixed(numbers["prompt_hash"][liked], numbers["first_hash"][liked]), known)]
