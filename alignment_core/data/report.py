"""The data report: what was found in the sources, what became of it, and what the model will see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from alignment_core.data.parts import DEMONSTRATION, FEEDBACK, PREFERENCE
from alignment_core.data.rendering import Renderer
from alignment_core.data.selection import Chosen, Facts
from alignment_core.data.sharding import ShardFolder
from alignment_core.data.shards import Shards
from alignment_core.data.writing import Written
from alignment_core.plugin_api import TokenSequence

SAMPLES = 5
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
        "overlap": _overlap(numbers, outcome.chosen),
        "samples": _samples(outcome, renderer),
    }
    return {**report, "warnings": [*outcome.facts.warnings, *_warnings(report, outcome.written)]}


def _balance(signs: Any) -> dict[str, Any]:
    """Labels by class, and the weights for which n_D·λ_D = n_U·λ_U with the larger one 1."""
    desirable, undesirable = int(np.count_nonzero(signs > 0)), int(np.count_nonzero(signs < 0))
    weights = {}
    if desirable and undesirable:
        fewer = min(desirable, undesirable)
        weights = {"lambda_D": round(fewer / desirable, 4), "lambda_U": round(fewer / undesirable, 4)}
    return {"desirable": desirable, "undesirable": undesirable, "suggested": weights}


def _lengths(numbers: Any, train: Chosen) -> dict[str, dict[str, float]]:
    """Tokens of what the model reads, by what it is."""
    chosen, rejected = train.preferences
    given = chosen == rejected
    rejected_tokens = np.r_[
        numbers["second_tokens"][rejected[given]], numbers["first_tokens"][rejected[~given]]
    ]  # fmt: skip
    columns = {
        "prompts": numbers["prompt_tokens"][train.prompts],
        "demonstrations": numbers["first_tokens"][train.demonstrations],
        "chosen": numbers["first_tokens"][chosen],
        "rejected": rejected_tokens,
        "desirable": _response_tokens(numbers, train, 1),
        "undesirable": _response_tokens(numbers, train, -1),
    }
    return {name: _spread(values) for name, values in columns.items() if len(values)}


def _response_tokens(numbers: Any, train: Chosen, sign: int) -> Any:
    record, side = (values[train.feedback[2] == sign] for values in train.feedback[:2])
    return np.where(side == 0, numbers["first_tokens"][record], numbers["second_tokens"][record])


def _spread(values: Any) -> dict[str, float]:
    low, median, high = np.percentile(values, [5, 50, 95])
    counts, edges = np.histogram(values, bins=min(40, max(1, len(np.unique(values)))))
    return {
        "min": int(values.min()), "p5": float(low), "median": float(median), "p95": float(high),
        "max": int(values.max()), "histogram": counts.tolist(), "edges": edges.tolist(),
    }  # fmt: skip


def _fit(outcome: Outcome, max_length: int) -> dict[str, Any]:
    numbers = outcome.shards.numbers
    too_long = sum(count for reason, count in outcome.quarantined.items() if reason.endswith("_too_long"))
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
    targets = int(numbers["targets"][demonstrations].sum())
    tokens = int(numbers["tokens"][demonstrations].sum())
    return {"tokens": tokens, "targets": targets, "masked_share": round(1 - targets / tokens, 4) if tokens else 0.0}


def _overlap(numbers: Any, chosen: Mapping[str, Chosen]) -> dict[str, int]:
    """Prompts and conversations that stand in both splits; 0 unless something is wrong."""
    found = {}
    for name, column in (("prompts", "prompt_hash"), ("conversations", "root")):
        sides = [numbers[column][_records(chosen[split])] for split in ("train", "held_out")]
        shared = np.intersect1d(*sides)
        found[name] = int(np.count_nonzero(shared)) if column == "prompt_hash" else len(shared)
    return found


def _records(chosen: Chosen) -> Any:
    return np.unique(np.r_[chosen.demonstrations, *chosen.preferences, chosen.feedback[0], chosen.prompts])


def _samples(outcome: Outcome, renderer: Renderer) -> list[dict[str, Any]]:
    """A few rows as the model sees them: runs of text, each a target or not."""
    shards, train = outcome.shards, outcome.chosen["train"]
    record, side, sign = train.feedback
    wanted = [(DEMONSTRATION, int(i), "demonstration", "demonstration") for i in _spaced(train.demonstrations, 2)]
    wanted += [(PREFERENCE, int(i), "first", "chosen") for i in _spaced(train.preferences[0], 1)]
    for place in _spaced(np.arange(len(record)), 2):
        name = "desirable response" if sign[place] > 0 else "undesirable response"
        wanted.append((FEEDBACK, int(record[place]), ("first", "second")[side[place]], name))
    return [
        {"kind": name, "origin": shards.origin(index), "runs": runs(shards.sequence(index, column), renderer)}
        for _, index, column, name in wanted[:SAMPLES]
    ]


def _spaced(values: Any, count: int) -> list[Any]:
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
    if sum(written["held_out"].rows.values()) == 0:
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
