"""The data report: what was found in the sources, what became of it, and what the model will see."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from alignment_core.data.conversion import Chosen
from alignment_core.data.facts import Facts
from alignment_core.data.ondisk import by_hash, in_parts
from alignment_core.data.parts import DEMONSTRATION, FEEDBACK, PREFERENCE
from alignment_core.data.rendering import Renderer
from alignment_core.data.sharding import ShardFolder
from alignment_core.data.shards import Shards
from alignment_core.data.writing import Written
from alignment_core.plugin_api import TokenSequence

SAMPLES = 5
TOO_LONG = frozenset({"completion_too_long", "prompt_too_long"})
"""Reasons that the settings give, not the row."""
NO_LIMIT = 2**31 - 1
"""A `max_length` that lets everything through."""
MUCH = 0.1
"""Share of the rows from which on a cut, a duplicate or an over-long answer is worth a warning."""


@dataclass(frozen=True)
class Outcome:
    """Everything that a report is made of, at the end of an ingestion."""

    folders: Sequence[ShardFolder]
    shards: Shards
    facts: Facts
    quarantined: Mapping[str, int]
    examples: Mapping[str, list[dict[str, Any]]]
    chosen: Mapping[str, Chosen]
    written: Mapping[str, Written]


def make_report(outcome: Outcome, renderer: Renderer, unit: str) -> dict[str, Any]:
    """The report as plain JSON; lengths are in `unit`.

    Keys: `files`, `rows` (split, kind), `conversions`, `quarantined`, `examples`, `dropped`, `votes`, `duplicates`,
    `balance`, `unit`, `lengths`, `fit`, `targets`, `overlap`, `samples`, `warnings`.
    """
    train, numbers = outcome.chosen["train"], outcome.shards.numbers
    stats = [folder.stats() for folder in outcome.folders]
    dropped: Counter[str] = Counter()
    for item in stats:
        dropped.update(item["dropped"])
    report = {
        "files": [
            {"name": folder.input.name, "reused": folder.reused, **item}
            for folder, item in zip(outcome.folders, stats, strict=True)
        ],
        "rows": {split: written.rows for split, written in outcome.written.items()},
        "conversions": {split: dict(counts) for split, counts in outcome.facts.conversions.items()},
        "quarantined": dict(outcome.quarantined),
        "examples": dict(outcome.examples),
        "dropped": dict(dropped),
        "votes": dict(outcome.facts.votes),
        "duplicates": dict(outcome.facts.duplicates),
        "balance": _balance(train.feedback[2]),
        "unit": unit,
        "lengths": _lengths(numbers, train),
        "fit": _fit(outcome, renderer.max_length),
        "targets": _targets(numbers, train.demonstrations),
        "overlap": _overlap(numbers, *(outcome.written[split].records for split in ("train", "held_out"))),
        "samples": _samples(outcome, renderer),
    }
    return {**report, "warnings": [*outcome.facts.warnings, *_warnings(report, outcome.written)]}


def _balance(signs: Any) -> dict[str, Any]:
    """Labels by class, and the weights for which n_D·λ_D = n_U·λ_U with the larger one 1."""
    desirable = sum(int(np.count_nonzero(signs[part] > 0)) for part in in_parts(len(signs)))
    undesirable = len(signs) - desirable
    weights = {}
    if desirable and undesirable:
        fewer = min(desirable, undesirable)
        weights = {"lambda_D": round(fewer / desirable, 4), "lambda_U": round(fewer / undesirable, 4)}
    return {"desirable": desirable, "undesirable": undesirable, "suggested": weights}


def _lengths(numbers: Any, train: Chosen) -> dict[str, dict[str, float]]:
    """Tokens of what the model reads, by what it is."""
    counts: dict[str, Counter[int]] = {}
    for name, tokens in _token_counts(numbers, train):
        values, times = np.unique(tokens, return_counts=True)
        counts.setdefault(name, Counter()).update(dict(zip(values.tolist(), times.tolist(), strict=True)))
    return {name: _spread(found) for name, found in counts.items() if found}


def _token_counts(numbers: Any, train: Chosen) -> Iterator[tuple[str, Any]]:
    first, second = numbers["first_tokens"], numbers["second_tokens"]
    for part in in_parts(len(train.prompts)):
        yield "prompts", numbers["prompt_tokens"][train.prompts[part]]
    for part in in_parts(len(train.demonstrations)):
        yield "demonstrations", first[train.demonstrations[part]]
    for part in in_parts(len(train.preferences[0])):
        chosen, rejected = (side[part] for side in train.preferences)
        yield "chosen", first[chosen]
        yield "rejected", np.where(chosen == rejected, second[rejected], first[rejected])
    for part in in_parts(len(train.feedback[0])):
        record, side, sign = (values[part] for values in train.feedback)
        tokens = np.where(side == 0, first[record], second[record])
        yield "desirable", tokens[sign > 0]
        yield "undesirable", tokens[sign < 0]


def _spread(counts: Mapping[int, int]) -> dict[str, Any]:
    values, times = (np.array(column) for column in zip(*sorted(counts.items()), strict=True))
    ends = np.cumsum(times)

    def percentile(share: float) -> float:
        """With linear interpolation between the two nearest, as numpy's."""
        place = share * (int(ends[-1]) - 1)
        below, above = values[np.searchsorted(ends, [math.floor(place), math.ceil(place)], side="right")]
        return float(below + (above - below) * (place - math.floor(place)))

    histogram, edges = np.histogram(values, bins=min(40, len(values)), weights=times)
    return {
        "min": int(values[0]), "p5": percentile(0.05), "median": percentile(0.5), "p95": percentile(0.95),
        "max": int(values[-1]), "histogram": histogram.tolist(), "edges": edges.tolist(),
    }  # fmt: skip


def _fit(outcome: Outcome, max_length: int) -> dict[str, Any]:
    numbers = outcome.shards.numbers
    too_long = sum(count for reason, count in outcome.quarantined.items() if reason in TOO_LONG)
    return {
        "max_length": max_length if max_length < NO_LIMIT else None,
        "truncated": int(np.count_nonzero(numbers["truncated"])),
        "rewritten_for_template": int(np.count_nonzero(numbers["rewritten"])),
        "too_long": too_long,
        "records": len(outcome.shards),
        "without_mismatch": outcome.written["train"].unmatched,
    }


def _targets(numbers: Any, demonstrations: Any) -> dict[str, Any]:
    """How many tokens of the demonstrations are learnt, and how many only read."""
    parts = [demonstrations[part] for part in in_parts(len(demonstrations))]
    targets, tokens = (sum(int(numbers[name][part].sum()) for part in parts) for name in ("targets", "tokens"))
    return {"tokens": tokens, "targets": targets, "masked_share": round(1 - targets / tokens, 4) if tokens else 0.0}


def _overlap(numbers: Any, train: Any, held_out: Any) -> dict[str, int]:
    """Prompts and conversations that stand in both splits; 0 unless something is wrong."""
    found = {}
    for name, column in (("prompts", "prompt_hash"), ("conversations", "root")):
        found[name] = 0
        for rows in by_hash(numbers[column], train | held_out):
            shared = np.intersect1d(*(numbers[column][rows[split[rows]]] for split in (train, held_out)))
            found[name] += int(np.count_nonzero(shared))
    return found


def _samples(outcome: Outcome, renderer: Renderer) -> list[dict[str, Any]]:
    """A few rows as the model sees them: runs of text, each a target or not."""
    shards, train = outcome.shards, outcome.chosen["train"]
    record, side, sign = train.feedback
    wanted = [(DEMONSTRATION, int(i), "demonstration", "demonstration") for i in _spaced(train.demonstrations, 2)]
    wanted += [(PREFERENCE, int(i), "first", "chosen") for i in _spaced(train.preferences[0], 1)]
    for place in _spaced(range(len(record)), 2):
        name = "desirable response" if sign[place] > 0 else "undesirable response"
        wanted.append((FEEDBACK, int(record[place]), ("first", "second")[side[place]], name))
    return [
        {"kind": name, "origin": shards.origin(index), "runs": runs(shards.sequence(index, column), renderer)}
        for _, index, column, name in wanted[:SAMPLES]
    ]


def _spaced(values: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the values, evenly spread, away from the ends."""
    places = np.unique(np.linspace(0, len(values) - 1, count + 2)[1:-1].astype(int)) if len(values) else ()
    return [values[i] for i in places]


def runs(sequence: TokenSequence, renderer: Renderer) -> list[dict[str, Any]]:
    """A sequence's text as runs of targets and of context, special tokens included."""
    mask = [False] * sequence.start + list(sequence.mask or [True] * (len(sequence.ids) - sequence.start))
    edges = [0, *(i for i in range(1, len(mask)) if mask[i] != mask[i - 1]), len(mask)]
    return [
        {"text": renderer.tokenizer.decode(list(sequence.ids[start:end])), "target": mask[start]}
        for start, end in pairwise(edges)
        if end > start
    ]


def _warnings(report: Mapping[str, Any], written: Mapping[str, Written]) -> list[str]:
    found = []
    balance, fit, duplicates = report["balance"], report["fit"], report["duplicates"]
    if (balance["desirable"] == 0) != (balance["undesirable"] == 0):
        found.append("Labels of one class only: KTO needs both")
    if sum(written["train"].rows.values()) and not sum(written["held_out"].rows.values()):
        found.append("Nothing is held out: give more data or a larger data.held_out_fraction")
    records = max(1, fit["records"])
    if fit["too_long"] > MUCH * records:
        found.append(
            f"{fit['too_long']} of {records} records are left out: longer than model.max_length ({fit['max_length']})"
        )
    if fit["truncated"] > MUCH * records:
        found.append(
            f"{fit['truncated']} of {records} records lost old turns to model.max_length ({fit['max_length']})"
        )
    removed = duplicates.get("near", 0)
    if removed > MUCH * records:
        found.append(f"{removed} of {records} records were near-duplicates; data.near_duplicates says how near")
    if fit["without_mismatch"]:
        found.append("The labels answer one prompt only: KTO's reference point needs several")
    if overlap := {name: count for name, count in report["overlap"].items() if count}:
        found.append(f"Training and held-out rows overlap: {overlap}")
    return found
