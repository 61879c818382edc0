"""The report of a run as one HTML file that opens offline: the result first, then plots, responses and numbers."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignment_core.artifacts import Manifest
from alignment_core.config import PipelineConfig
from alignment_core.data.ingestion.report.charts import data_charts
from alignment_core.data.ingestion.report.used import used_line
from alignment_core.evaluation.promotion import Promotion
from alignment_core.execution.build import StageResult
from alignment_core.markdown import unmarked
from alignment_core.outcome.sentences import lines
from alignment_core.reporting.bars import distribution, histogram_chart
from alignment_core.reporting.page import Fact, Figures, render
from alignment_core.reporting.svg import BASELINE, Chart
from alignment_core.reporting.words import Answer, Sample, that_fit
from alignment_core.texts import percent
from alignment_flows.reports.comparison import SAMPLES, Comparison, OptimizerRun, compare_results
from alignment_flows.reports.comparison_page import PACKAGE, scored
from alignment_flows.reports.curves import PANELS, curve_charts, read_curves, reliability
from alignment_flows.reports.model_charts import judge_name, score_charts, series_of, win_rate_chart
from alignment_flows.reports.numbers import numbers
from alignment_flows.reports.places import page_of
from alignment_flows.reports.result import advice_on_run, result_of_run, steps_after

OUTCOMES = {1: "preferred", 0: "a tie", -1: "not preferred", None: "no verdict"}
MODELS = {
    "before": ("evaluate_sft", "lm_eval_sft"),
    "after": ("evaluate", "lm_eval"),
    "production": ("evaluate_production",),
}
"""The stages that measure the model before and after the run, and the one in production."""


def write_run_page(config: PipelineConfig, built: Mapping[str, StageResult], promotion: Promotion | None) -> Path:
    """Write the page into the store and return its path.

    Raises:
        OSError: it cannot be written.
    """
    place = page_of(config.name, built)
    place.parent.mkdir(parents=True, exist_ok=True)
    new = place.with_name(f".{place.name}.new")
    new.write_text(run_page(config, built, promotion), encoding="utf-8")
    new.replace(place)
    return place


def run_page(config: PipelineConfig, built: Mapping[str, StageResult], promotion: Promotion | None) -> str:
    """Return the page of a finished run.

    Args:
        config: the settings of the run.
        built: its stages by their names in the plan, parents before children.
        promotion: the result of the gate; None if the run has no gate.
    """
    policy = built["optimize"].artifact.manifest()
    name = policy.config["optimizer"]["name"]
    comparison = compare_results([OptimizerRun(name, policy.config["optimizer"], built)])
    result = result_of_run(built)
    series = series_of(comparison.rows)
    curves = curve_charts(comparison.curves, series)
    return render(
        PACKAGE, "run.html.jinja",
        title=config.name,
        kicker=f"{name} on {config.model.base}",
        sentences=list(lines(result)),
        steps=[unmarked(step) for step in steps_after(result, built, "CONFIG")],
        advice=advice_on_run(built),
        promotion=promotion,
        facts=list(_facts(built, comparison, result.start)),
        series=series,
        charts=list(_charts(built, comparison, series, result.start)),
        curves=curves[:PANELS],
        more_curves=[*curves[PANELS:], *_earlier(built)],
        data=_data(built),
        samples=that_fit(_samples(built, comparison, series), SAMPLES),
        prompts=int(comparison.rows[-1].metrics.get("prompts", 0)),
        measured=gains(built),
        stages=_stages(built),
        settings=[f"{key}: {value}" for key, value in numbers(policy.config)],
        warnings=[(stage, text) for stage, made in built.items() for text in made.metrics.get("warnings", ())],
        faults=[(stage, fault) for stage, made in built.items() for fault in made.listener_errors],
    )  # fmt: skip


def _facts(built: Mapping[str, StageResult], comparison: Comparison, start: str) -> Iterator[Fact]:
    over = built["over_sft"].metrics if "over_sft" in built else {}
    for judge, rate in list(over.get("win_rate", {}).items())[:1]:
        kind = "good" if rate["low"] > 0.5 else "bad" if rate["high"] < 0.5 else ""
        text = f"95 % interval {100 * rate['low']:.0f} to {100 * rate['high']:.0f}, by {judge_name(judge)}"
        yield Fact(f"preferred to {start}", percent(rate["rate"]), text, kind)
    metrics = comparison.rows[-1].metrics
    if (kl := metrics.get("kl")) is not None and math.isfinite(kl):
        yield Fact(f"KL from {start}", f"{kl:.3g}", "nats per response")
    if ratio := over.get("length_ratio"):
        yield Fact("length of the answers", percent(ratio - 1, sign="+"), f"characters, against {start}")
    if ingest := built.get("ingest"):
        used = ingest.metrics.get("used")
        if used:
            yield Fact("records used", f"{used['records']:,} of {used['of']:,}")
    if gate := built.get("gate"):
        passed = gate.metrics["passed"]
        yield Fact("gate", "passed" if passed else "not passed", kind="good" if passed else "bad")
    manifest = built["optimize"].artifact.manifest()
    peak = _peak(manifest)
    yield Fact("training time", _duration(manifest.seconds), peak and f"{peak} of memory at most")


def _duration(seconds: float) -> str:
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def _peak(manifest: Manifest) -> str:
    """Return the peak memory of a stage, on the device if there was one."""
    size = manifest.peak_device_memory_bytes or manifest.peak_memory_bytes
    return "" if size is None else f"{size / 2**30:.2f} GiB"


def _charts(
    built: Mapping[str, StageResult], comparison: Comparison, series: Mapping[str, int], start: str
) -> Iterator[Chart]:
    for stage, opponent in (("over_sft", start), ("over_production", "the model in production")):
        rates = built[stage].metrics.get("win_rate") if stage in built else None
        if rates:
            named = {judge_name(judge): rate for judge, rate in rates.items()}
            yield win_rate_chart(f"Preferred to {opponent}", named, dict.fromkeys(named, 0))
    yield from score_charts(comparison.rows, series)
    stages = {row.model: "evaluate_sft" if row.is_start else "evaluate" for row in comparison.rows}
    lengths = {
        model: [len(line["response"]) for line in _lines(built[stage].artifact.path / "responses.jsonl")]
        for model, stage in stages.items()
        if stage in built
    }
    found = [distribution(model, values, series[model]) for model, values in lengths.items() if values]
    if found:
        yield histogram_chart("Length of the responses", found, "characters")
    if "reward" in built and (file := built["reward"].artifact.path / "calibration.json").is_file():
        yield reliability(file)


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _earlier(built: Mapping[str, StageResult]) -> list[Chart]:
    """Return the curves of the models that were trained before the policy."""
    found = {
        stage: read_curves(history)
        for stage in ("sft", "reward", "judge")
        if stage in built and (history := built[stage].artifact.path / "metrics.jsonl").is_file()
    }
    return [
        chart
        for stage, curves in found.items()
        for chart in curve_charts({stage: {f"{stage}_{name}": curve for name, curve in curves.items()}}, {stage: 0})
    ]


def _data(built: Mapping[str, StageResult]) -> dict[str, Any] | None:
    """Return the result and the charts of the data report, and where the whole report is."""
    if "ingest" not in built or not (file := built["ingest"].artifact.path / "report.json").is_file():
        return None
    report = json.loads(file.read_text(encoding="utf-8"))
    return {
        "used": used_line(report["used"]),
        "charts": data_charts(report),
        "page": str(file.with_name("report.html")),
    }


def _samples(built: Mapping[str, StageResult], comparison: Comparison, series: Mapping[str, int]) -> Iterator[Sample]:
    """Yield the first prompts with both responses, their scores, and the verdicts on them."""
    judged = _lines(built["over_sft"].artifact.path / "verdicts.jsonl") if "over_sft" in built else []
    verdicts = {_key(line["prompt"], line["response"]): line["verdicts"] for line in judged}
    for sample in comparison.samples:
        answers = []
        for model, given in sample["answers"].items():
            found = {} if series[model] == BASELINE else verdicts.get(_key(sample["prompt"], given["response"]), {})
            notes = [f"{OUTCOMES[verdict]} by {judge_name(judge)}" for judge, verdict in found.items()]
            answers.append(Answer(model, series[model], given["response"], [*notes, *scored(given["scores"])]))
        yield Sample([(str(turn["role"]), str(turn["content"])) for turn in sample["prompt"]], answers)


def _key(prompt: Any, response: str) -> str:
    return json.dumps([prompt, response], sort_keys=True)


def gains(built: Mapping[str, StageResult]) -> Figures:
    """Return the held-out metrics of the model before and after the run, and of the one in production."""
    there = {
        head: {key: value for name in names if name in built for key, value in numbers(built[name].metrics, digits=4)}
        for head, names in MODELS.items()
        if names[0] in built
    }
    rows = [[name, *(of.get(name, "") for of in there.values())] for name in there.get("after", {})]
    return Figures("Before and after", ["held-out metric", *there], rows)


def _stages(built: Mapping[str, StageResult]) -> Figures:
    rows = []
    for name, stage in built.items():
        manifest = stage.artifact.manifest()
        place = f"{manifest.kind}/{manifest.key[:12]}"
        rows.append([name, "cached" if stage.cached else "built", f"{manifest.seconds:.1f}", _peak(manifest), place])
    numeric = (False, False, True, True, False)
    return Figures("Stages", ["stage", "", "seconds", "peak memory", "artifact"], rows, numeric)
