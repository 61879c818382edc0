"""The numbers of a comparison of optimizers: quality with intervals, KL, cost, and responses side by side."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alignment_core.errors import AlignmentError
from alignment_core.execution.build import StageResult
from alignment_core.outcome.result import start_name
from alignment_core.outcome.sentences import achieved
from alignment_core.plugin_api import Advice
from alignment_flows.reports.curves import Curve, read_curves
from alignment_flows.reports.result import advice_on_runs, result_of_run
from alignment_flows.reports.seed_results import OverSeeds

NORMAL_95 = 1.96
SAMPLES = 24
LEARNT_FROM = ("preferences", "feedback", "demonstrations", "prompts")


@dataclass(frozen=True)
class OptimizerRun:
    """One contender of a comparison, with one seed.

    Attributes:
        name: the optimizer's name, and the values of the settings that are compared.
        settings: all settings of the optimizer.
        built: the stages that were built, by their names in the plan.
        error: the error if it failed.
    """

    name: str
    settings: Mapping[str, Any]
    built: Mapping[str, StageResult]
    error: AlignmentError | None = None


@dataclass(frozen=True)
class Estimate:
    """A mean over the held-out prompts.

    Attributes:
        mean: the mean.
        low, high: its 95 % interval, by the normal approximation.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One model: the one that training started from, or the one that an optimizer trained from it.

    Attributes:
        model: the optimizer's name; for the start `sft`, `adapter` or `base`.
        is_start: whether this is the model that training started from.
        error: the error if the optimizer failed, else None.
        settings: the optimizer's settings.
        artifact: kind and key of the adapter; None if there is none.
        cached: whether the adapter was already in the store.
        scores: mean of each score of its responses, by the reward model and by each evaluator.
        characters: mean number of characters of its responses; None if it was not evaluated.
        win_rate: for each judge, how often its response is preferred to the start's: `rate`, `low`, `high`, counts.
        metrics: metrics of the evaluation, such as KL and its standard error, length and perplexity.
        seconds: wall time of the stage that trained it, from when it was built.
        seconds_before: wall time of the stages that it reads in addition to the SFT model: reward model and reference
            log-probabilities.
        peak_memory, peak_device_memory: peak memory of the stage that trained it, in bytes. That of a device is what
            PyTorch reserved there, without the CUDA context.
        learnt_from: number of training rows by kind.
    """

    model: str
    is_start: bool = False
    error: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    artifact: str | None = None
    cached: bool = False
    scores: Mapping[str, Estimate] = field(default_factory=dict)
    characters: Estimate | None = None
    win_rate: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    seconds_before: float = 0.0
    peak_memory: int | None = None
    peak_device_memory: int | None = None
    learnt_from: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Several optimizers that start from the same model.

    Attributes:
        runs: the optimizers' runs.
        rows: the start, then each optimizer in the given order.
        curves: training metrics by step, for each optimizer.
        samples: prompts with the response of each model.
        over_seeds: how the contenders differ, if settings or seeds were compared. Runs, curves and samples are then
            those of the first seed, and the rows are of all seeds.
    """

    runs: Sequence[OptimizerRun]
    rows: Sequence[Row]
    curves: Mapping[str, Mapping[str, Curve]]
    samples: Sequence[Mapping[str, Any]]
    over_seeds: OverSeeds | None = None

    @property
    def trained(self) -> dict[str, Mapping[str, StageResult]]:
        """The stages of each run that trained a model, by its name."""
        return {run.name: run.built for run in self.runs if "optimize" in run.built}

    def sentences(self) -> list[str]:
        """Return what each optimizer achieved, one sentence each. A sweep says it of all seeds."""
        if self.over_seeds is not None:
            return self.over_seeds.sentences()
        return [achieved(result_of_run(built)) for built in self.trained.values()]

    def advice(self) -> list[tuple[str, Advice]]:
        """Return the advice on the runs, each with the names of those that it is for, or without names if for all."""
        found = advice_on_runs(self.trained)
        return [("" if len(names) == len(self.trained) else ", ".join(names), one) for one, names in found.items()]

    def to_json(self) -> dict[str, Any]:
        """Return everything except the curves, which are in the adapters' `metrics.jsonl`."""
        models = [asdict(row) for row in self.rows]
        seeds = {} if self.over_seeds is None else {"over_seeds": self.over_seeds.to_json()}
        advice = [{"models": names, **asdict(one)} for one, names in advice_on_runs(self.trained).items()]
        return {"results": self.sentences(), "models": models, **seeds, "advice": advice, "samples": list(self.samples)}


def compare_results(runs: Sequence[OptimizerRun]) -> Comparison:
    """Compute the comparison from the optimizers' runs."""
    start = next((run.built["evaluate_sft"] for run in runs if "evaluate_sft" in run.built), None)
    evaluated = {run.name: run.built["evaluate"] for run in runs if "evaluate" in run.built}
    rows = [] if start is None else [_start(runs, start)]
    curves = {
        run.name: read_curves(history)
        for run in runs
        if "optimize" in run.built and (history := run.built["optimize"].artifact.path / "metrics.jsonl").is_file()
    }
    answers = {row.model: start for row in rows if start is not None} | evaluated
    return Comparison(runs, rows + [_row(run) for run in runs], curves, _samples(answers))


def start_in(rows: Sequence[Row]) -> str:
    """Return the name of the model that the others started from: `the start` where no run measured it."""
    return next((row.model for row in rows if row.is_start), "the start")


def _start(runs: Sequence[OptimizerRun], evaluated: StageResult) -> Row:
    stages = {name: built for run in runs for name, built in run.built.items()}
    return Row(start_name(stages), is_start=True, **_measured(evaluated), **_cost(stages.get("sft")))


def _row(run: OptimizerRun) -> Row:
    built = run.built
    error = None if run.error is None else str(run.error)
    measured = _measured(built["evaluate"]) if "evaluate" in built else {}
    rates = built["over_sft"].metrics["win_rate"] if "over_sft" in built else {}
    read = built["optimize"].artifact.manifest().parents if "optimize" in built else {}
    before = sum(built[name].artifact.manifest().seconds for name in ("reward", "reference") if name in read)
    return Row(
        run.name, error=error, settings=run.settings, win_rate=rates, seconds_before=before,
        learnt_from=_learnt_from(built), **measured, **_cost(built.get("optimize")),
    )  # fmt: skip


def _cost(trained: StageResult | None) -> dict[str, Any]:
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


def _measured(evaluated: StageResult) -> dict[str, Any]:
    scores: dict[str, list[float]] = {}
    lines = responses_of(evaluated)
    for line in lines:
        for name, value in line.items():
            if isinstance(value, int | float):
                scores.setdefault(name, []).append(float(value))
    numbers = {name: value for name, value in evaluated.metrics.items() if isinstance(value, int | float)}
    return {
        "scores": {name: estimate(values) for name, values in scores.items()},
        "characters": estimate([len(line["response"]) for line in lines]) if lines else None,
        "metrics": numbers,
    }


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean and its 95 % interval. The interval of a single value is infinite."""
    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return Estimate(mean, -math.inf, math.inf)
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)
    return Estimate(mean, mean - NORMAL_95 * error, mean + NORMAL_95 * error)


def _learnt_from(built: Mapping[str, StageResult]) -> dict[str, int]:
    """Count the training rows of each kind behind the adapter, including those of its reward model."""
    if "optimize" not in built:
        return {}
    # A stage learns from the ingested rows and the ranked samples together.
    rows: Counter[str] = Counter()
    for stage in ("ingest", "rank"):
        if stage in built:
            rows.update(built[stage].metrics.get("rows", {}).get("train", {}))
    described = built["optimize"].artifact.manifest().parents
    kinds = {"preferences"} if "reward" in described else set()
    kinds |= set(_needs(built["optimize"]))
    return {kind: rows[kind] for kind in LEARNT_FROM if kind in kinds and rows[kind]}


def _needs(trained: StageResult) -> list[str]:
    from alignment_core.registry import load_registry

    needs = load_registry().optimizer(trained.artifact.manifest().config["optimizer"]).needs()
    return [kind for kind in LEARNT_FROM if getattr(needs, kind)]


def responses_of(evaluated: StageResult) -> list[dict[str, Any]]:
    """Return the lines of `responses.jsonl` of an evaluation."""
    path: Path = evaluated.artifact.path / "responses.jsonl"
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _samples(evaluated: Mapping[str, StageResult]) -> list[dict[str, Any]]:
    """Return the first held-out prompts with the response and scores of each model. All models get the same prompts."""
    answered = {model: responses_of(built)[:SAMPLES] for model, built in evaluated.items()}
    samples: list[dict[str, Any]] = []
    for model, lines in answered.items():
        for place, line in enumerate(lines):
            if place == len(samples):
                samples.append({"prompt": line["prompt"], "answers": {}})
            scores = {name: value for name, value in line.items() if isinstance(value, int | float)}
            if line["prompt"] == samples[place]["prompt"]:
                samples[place]["answers"][model] = {"response": line["response"], "scores": scores}
    return samples
