"""What a comparison of optimizers found, as numbers: quality with its interval, KL, cost, and answers side by side."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alignment_core.errors import AlignmentError
from alignment_core.stages.build import Built
from alignment_flows.curves import Curve, read_curves

START = "sft"
NORMAL_95 = 1.96
SAMPLES = 8
LEARNT_FROM = ("preferences", "feedback", "prompts")


@dataclass(frozen=True)
class Contender:
    """One optimizer of a comparison.

    Attributes:
        name: its name.
        settings: all of its settings.
        built: the stages of its run by the names of the plan, as far as it came.
        error: what it failed with.
    """

    name: str
    settings: Mapping[str, Any]
    built: Mapping[str, Built]
    error: AlignmentError | None = None


@dataclass(frozen=True)
class Estimate:
    """A mean over the held-out prompts.

    Attributes:
        mean: the mean.
        low, high: its 95 % interval, by the normal distribution of a mean.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One model: the start, or what an optimizer made of it.

    Attributes:
        model: `sft`, or the optimizer's name.
        error: what it failed with; None where it did not.
        settings: the optimizer's.
        artifact: kind and key of the adapter; None for a start without one, or where there is none.
        cached: whether it was in the store already.
        scores: mean of each score of its responses, by the reward model and by each evaluator.
        win_rate: by judge, how often its response is preferred to the start's: `rate`, `low`, `high`, counts.
        metrics: what the evaluation measured: KL and its standard error, length, perplexity and more.
        seconds: wall time of the stage that trained it, when it was built.
        seconds_before: the same of what it read besides the SFT model: reward model, reference log-probabilities.
        peak_memory, peak_device_memory: of the stage that trained it, bytes.
        learnt_from: number of training rows that it learnt from, by kind.
    """

    model: str
    error: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    artifact: str | None = None
    cached: bool = False
    scores: Mapping[str, Estimate] = field(default_factory=dict)
    win_rate: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    seconds_before: float = 0.0
    peak_memory: int | None = None
    peak_device_memory: int | None = None
    learnt_from: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Several optimizers from one start.

    Attributes:
        contenders: what ran.
        rows: the start, then each optimizer in the order they were named.
        curves: training metrics over the steps, by optimizer.
        samples: prompts with the answer of each model.
    """

    contenders: Sequence[Contender]
    rows: Sequence[Row]
    curves: Mapping[str, Mapping[str, Curve]]
    samples: Sequence[Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Everything but the curves, which are in the adapters' `metrics.jsonl`."""
        return {"models": [asdict(row) for row in self.rows], "samples": list(self.samples)}


def compared(contenders: Sequence[Contender]) -> Comparison:
    """The numbers of what ran."""
    start = next((c.built["evaluate_sft"] for c in contenders if "evaluate_sft" in c.built), None)
    evaluated = {c.name: c.built["evaluate"] for c in contenders if "evaluate" in c.built}
    rows = [] if start is None else [_start(contenders, start)]
    curves = {
        c.name: read_curves(history)
        for c in contenders
        if "optimize" in c.built and (history := c.built["optimize"].artifact.path / "metrics.jsonl").is_file()
    }
    answers = ({START: start} if start is not None else {}) | evaluated
    return Comparison(contenders, rows + [_row(c) for c in contenders], curves, _samples(answers))


def _start(contenders: Sequence[Contender], evaluated: Built) -> Row:
    trained = next((c.built["sft"] for c in contenders if "sft" in c.built), None)
    return Row(START, **_measured(evaluated), **_cost(trained))


def _row(contender: Contender) -> Row:
    built = contender.built
    error = None if contender.error is None else str(contender.error)
    measured = _measured(built["evaluate"]) if "evaluate" in built else {}
    rates = built["over_sft"].metrics["win_rate"] if "over_sft" in built else {}
    read = built["optimize"].artifact.manifest().parents if "optimize" in built else {}
    before = sum(built[name].artifact.manifest().seconds for name in ("reward", "reference") if name in read)
    return Row(
        contender.name, error, contender.settings, win_rate=rates, seconds_before=before,
        learnt_from=_learnt_from(built), **measured, **_cost(built.get("optimize")),
    )  # fmt: skip


def _cost(trained: Built | None) -> dict[str, Any]:
    if trained is None:
        return {}
    manifest = trained.artifact.manifest()
    return {
        "artifact": f"{manifest.kind}/{manifest.key}",
        "cached": trained.cached,
        "seconds": manifest.seconds,
        "peak_memory": manifest.peak_memory_bytes,
        "peak_device_memory": manifest.peak_device_memory_bytes,
    }


def _measured(evaluated: Built) -> dict[str, Any]:
    scores: dict[str, list[float]] = {}
    for line in _responses(evaluated):
        for name, value in line.items():
            if isinstance(value, int | float):
                scores.setdefault(name, []).append(float(value))
    numbers = {name: value for name, value in evaluated.metrics.items() if isinstance(value, int | float)}
    return {"scores": {name: estimate(values) for name, values in scores.items()}, "metrics": numbers}


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval; no width is known of a single value."""
    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return Estimate(mean, -math.inf, math.inf)
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)
    return Estimate(mean, mean - NORMAL_95 * error, mean + NORMAL_95 * error)


def _learnt_from(built: Mapping[str, Built]) -> dict[str, int]:
    """Training rows of each kind that went into the adapter, through its reward model too."""
    if "optimize" not in built:
        return {}
    data = built["rank" if "rank" in built else "ingest"].metrics.get("rows", {}).get("train", {})
    described = built["optimize"].artifact.manifest().parents
    kinds = {"preferences"} if "reward" in described else set()
    kinds |= set(_needs(built["optimize"]))
    return {kind: data[kind] for kind in LEARNT_FROM if kind in kinds and data.get(kind)}


def _needs(trained: Built) -> list[str]:
    from alignment_core.registry import load_registry

    optimizer = load_registry().optimizer_class(trained.artifact.manifest().config["optimizer"]["name"])
    return [kind for kind in LEARNT_FROM if getattr(optimizer, kind)]


def _responses(evaluated: Built) -> list[dict[str, Any]]:
    path: Path = evaluated.artifact.path / "responses.jsonl"
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _samples(evaluated: Mapping[str, Built]) -> list[dict[str, Any]]:
    """The first held-out prompts with every model's answer and its scores: all were asked the same ones."""
    answered = {model: _responses(built)[:SAMPLES] for model, built in evaluated.items()}
    samples: list[dict[str, Any]] = []
    for model, lines in answered.items():
        for place, line in enumerate(lines):
            if place == len(samples):
                samples.append({"prompt": line["prompt"], "answers": {}})
            scores = {name: value for name, value in line.items() if isinstance(value, int | float)}
            if line["prompt"] == samples[place]["prompt"]:
                samples[place]["answers"][model] = {"response": line["response"], "scores": scores}
    return samples
