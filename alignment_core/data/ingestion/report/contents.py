"""The contents of the data report: what the sources contain, how records are used, and what the model sees."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from alignment_core.data.dataset.disk_arrays import hash_groups, slices
from alignment_core.data.dataset.kinds import DEMONSTRATION, FEEDBACK, PREFERENCE
from alignment_core.data.ingestion.conversion import Chosen
from alignment_core.data.ingestion.counts import SelectionCounts
from alignment_core.data.ingestion.remedies import TOO_LONG
from alignment_core.data.ingestion.report.warnings import warnings
from alignment_core.data.ingestion.shard_cache import ShardFolder
from alignment_core.data.ingestion.shards import Shards, origin
from alignment_core.data.ingestion.writing import Written
from alignment_core.data.rendering.renderer import Renderer
from alignment_core.plugin_api import TokenSequence

SAMPLES = 5
"""Maximum number of samples in the report."""
NO_LIMIT = 2**31 - 1
"""A `max_length` that nothing exceeds."""


@dataclass(frozen=True)
class Outcome:
    """The results of an ingestion, from which the report is made."""

    folders: Sequence[ShardFolder]
    shards: Shards
    counts: SelectionCounts
    quarantined: Mapping[str, int]
    examples: Mapping[str, list[dict[str, Any]]]
    thresholds: Sequence[float | None]
    chosen: Mapping[str, Chosen]
    written: Mapping[str, Written]
    warnings: Sequence[str]


def make_report(outcome: Outcome, renderer: Renderer, unit: str) -> dict[str, Any]:
    """Return the report as plain JSON. Lengths are in `unit`.

    Keys: `used`, `ignored` (rows by unread column), `ignored_examples`, `unrendered` (records by reason), `files`,
    `rendering`, `rows` (by split and kind), `conversions`, `quarantined`, `examples`, `thresholds` (of each source:
    the one that its ratings need and lack), `dropped`, `votes`, `duplicates`, `balance`, `raters`, `unit`, `lengths`,
    `fit`, `targets`, `overlap`, `samples`, `warnings`.
    """
    train, numbers = outcome.chosen["train"], outcome.shards.numbers
    stats = [folder.stats() for folder in outcome.folders]
    dropped: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    for item in stats:
        dropped.update(item["dropped"])
        ignored.update(item["ignored"])
    report = {
        "used": _used(outcome, dropped),
        "ignored": dict(ignored.most_common()),
        "ignored_examples": _ignored_examples(outcome.folders, stats),
        "unrendered": dict(outcome.shards.reasons()),
        "files": [
            {"name": folder.input.name, "reused": folder.reused, **item}
            for folder, item in zip(outcome.folders, stats, strict=True)
        ],
        "rendering": _rendering(stats, renderer),
        "rows": {split: written.rows for split, written in outcome.written.items()},
        "conversions": {split: dict(counts) for split, counts in outcome.counts.conversions.items()},
        "quarantined": dict(outcome.quarantined),
        "examples": dict(outcome.examples),
        "thresholds": list(outcome.thresholds),
        "dropped": dict(dropped),
        "votes": dict(outcome.counts.votes),
        "duplicates": dict(outcome.counts.duplicates),
        "balance": _balance(train.feedback[2]),
        "raters": _raters(outcome),
        "unit": unit,
        "lengths": _lengths(numbers, train),
        "fit": _fit(outcome, renderer.max_length),
        "targets": _targets(numbers, train.demonstrations),
        "overlap": _overlap(numbers, *(outcome.written[split].records for split in ("train", "held_out"))),
        "samples": _samples(outcome, renderer),
    }
    counts = {split: sum(written.rows.values()) for split, written in outcome.written.items()}
    return {**report, "warnings": [*outcome.warnings, *outcome.counts.warnings, *warnings(report, **counts)]}


def _ignored_examples(folders: Sequence[ShardFolder], stats: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the first place and value of each unread column."""
    found: dict[str, str] = {}
    for folder, item in zip(folders, stats, strict=True):
        for column, (file, line, value) in item["ignored_examples"].items():
            found.setdefault(column, f"{origin(folder.input.names[file], line)}: {value}")
    return found


def _used(outcome: Outcome, dropped: Mapping[str, int]) -> dict[str, int]:
    """Return how many `records` are part of a row, and `of` how many: those read, dropped and quarantined."""
    fit = int(np.count_nonzero(outcome.shards.numbers["fits"]))
    used = outcome.written["train"].records | outcome.written["held_out"].records
    lost = sum(dropped.values()) + sum(outcome.quarantined.values())
    return {"records": int(np.count_nonzero(used)), "of": fit + lost}


def _raters(outcome: Outcome) -> dict[str, float]:
    """Return the `count` of the raters that the used records name, and the `largest` share of one of them."""
    votes: Counter[int] = Counter()
    used = outcome.written["train"].records | outcome.written["held_out"].records
    for part in slices(len(used)):
        voters, counts = np.unique(outcome.shards.numbers["voter"][part][used[part]], return_counts=True)
        votes.update(dict(zip(voters.tolist(), counts.tolist(), strict=True)))
    votes.pop(0, None)  # the records that name nobody
    return {"count": len(votes), "largest": max(votes.values()) / votes.total()} if votes else {"count": 0}


def _rendering(stats: Sequence[Mapping[str, Any]], renderer: Renderer) -> dict[str, Any]:
    """Return what became of turns and thoughts when they were rendered, and the date that the template prints."""
    counts: dict[str, Any] = {name: Counter() for name in ("left_out", "thoughts")}
    for name, total in counts.items():
        for item in stats:
            total.update(item[name])
    return {**{name: dict(total) for name, total in counts.items()}, "date": renderer.printed_date}


def _balance(signs: Any) -> dict[str, Any]:
    """Count labels by class, and suggest weights with n_D·λ_D = n_U·λ_U, the larger of which is 1."""
    desirable = sum(int(np.count_nonzero(signs[part] > 0)) for part in slices(len(signs)))
    undesirable = len(signs) - desirable
    weights = {}
    if desirable and undesirable:
        fewer = min(desirable, undesirable)
        weights = {"lambda_D": round(fewer / desirable, 4), "lambda_U": round(fewer / undesirable, 4)}
    return {"desirable": desirable, "undesirable": undesirable, "suggested": weights}


def _lengths(numbers: Any, train: Chosen) -> dict[str, dict[str, float]]:
    """Return statistics of the lengths of prompts and of each kind of answer, in tokens."""
    counts: dict[str, Counter[int]] = {}
    for name, tokens in _token_counts(numbers, train):
        values, times = np.unique(tokens, return_counts=True)
        counts.setdefault(name, Counter()).update(dict(zip(values.tolist(), times.tolist(), strict=True)))
    return {name: _spread(found) for name, found in counts.items() if found}


def _token_counts(numbers: Any, train: Chosen) -> Iterator[tuple[str, Any]]:
    first, second = numbers["first_tokens"], numbers["second_tokens"]
    for part in slices(len(train.prompts)):
        yield "prompts", numbers["prompt_tokens"][train.prompts[part]]
    for part in slices(len(train.demonstrations)):
        yield "demonstrations", first[train.demonstrations[part]]
    for part in slices(len(train.preferences[0])):
        chosen, rejected = (side[part] for side in train.preferences)
        yield "chosen", first[chosen]
        yield "rejected", np.where(chosen == rejected, second[rejected], first[rejected])
    for part in slices(len(train.feedback[0])):
        record, side, sign = (values[part] for values in train.feedback)
        tokens = np.where(side == 0, first[record], second[record])
        yield "desirable", tokens[sign > 0]
        yield "undesirable", tokens[sign < 0]


def _spread(counts: Mapping[int, int]) -> dict[str, Any]:
    values, times = (np.array(column) for column in zip(*sorted(counts.items()), strict=True))
    ends = np.cumsum(times)

    def percentile(share: float) -> float:
        """Interpolate linearly between the two nearest values, as numpy does."""
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
        "longest": _longest(numbers, outcome.written),
        "without_mismatch": outcome.written["train"].unmatched,
    }


def _longest(numbers: Any, written: Mapping[str, Written]) -> int:
    """Return the length of the longest sequence of a row, prompt and completion together."""
    longest = 0
    for split in written.values():
        for part in slices(len(split.records)):
            answer = np.maximum(numbers["first_tokens"][part], numbers["second_tokens"][part])
            longest = max(longest, int((numbers["head_tokens"][part] + answer)[split.records[part]].max(initial=0)))
    return longest


def _targets(numbers: Any, demonstrations: Any) -> dict[str, Any]:
    """Count the tokens of the demonstrations and those of them that are targets."""
    parts = [demonstrations[part] for part in slices(len(demonstrations))]
    targets, tokens = (sum(int(numbers[name][part].sum()) for part in parts) for name in ("targets", "tokens"))
    return {"tokens": tokens, "targets": targets, "masked_share": round(1 - targets / tokens, 4) if tokens else 0.0}


def _overlap(numbers: Any, train: Any, held_out: Any) -> dict[str, int]:
    """Count prompts and conversations that are in both splits. 0 unless something is wrong."""
    found = {}
    for name, column in (("prompts", "prompt_hash"), ("conversations", "root")):
        found[name] = 0
        for rows in hash_groups(numbers[column], train | held_out):
            shared = np.intersect1d(*(numbers[column][rows[split[rows]]] for split in (train, held_out)))
            found[name] += int(np.count_nonzero(shared))
    return found


def _samples(outcome: Outcome, renderer: Renderer) -> list[dict[str, Any]]:
    """Return a few rows as the model sees them, as runs of text that are targets or context."""
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
    """Return at most `count` of the values, evenly spaced and away from the ends."""
    places = np.unique(np.linspace(0, len(values) - 1, count + 2)[1:-1].astype(int)) if len(values) else ()
    return [values[i] for i in places]


def runs(sequence: TokenSequence, renderer: Renderer) -> list[dict[str, Any]]:
    """Return the text of a sequence as runs of targets and of context, including special tokens."""
    mask = [False] * sequence.start + list(sequence.mask or [True] * (len(sequence.ids) - sequence.start))
    edges = [0, *(i for i in range(1, len(mask)) if mask[i] != mask[i - 1]), len(mask)]
    return [
        {"text": renderer.tokenizer.decode(list(sequence.ids[start:end])), "target": mask[start]}
        for start, end in pairwise(edges)
        if end > start
    ]
