"""The report of a comparison: HTML that opens offline, a short version as markdown for Prefect, and JSON."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment_core.errors import ConfigError
from alignment_core.markdown import code, message, plain
from alignment_core.reporting.page import Cell, Figures, render
from alignment_core.reporting.svg import Chart, picture
from alignment_core.reporting.words import Answer, Sample, that_fit
from alignment_core.texts import percent
from alignment_flows.reports.comparison import SAMPLES, Comparison, Estimate, Row, start_in
from alignment_flows.reports.curves import PANELS, curve_charts
from alignment_flows.reports.model_charts import (
    judge_name,
    length_charts,
    score_charts,
    seed_charts,
    series_of,
    win_rate_chart,
    win_rate_text,
)
from alignment_flows.reports.result import advice_line
from alignment_flows.reports.seed_results import OverSeeds

FOLDER = Path("comparison")
"""Where the report goes unless another folder is named."""
HTML, JSON = "report.html", "report.json"
DASH = "–"
NAMED = 4
"""More models are counted, not named."""
PACKAGE = "alignment_flows.reports"


def check_folder(folder: Path) -> None:
    """Check that the report can go into a folder, before anything is trained for it.

    Raises:
        ConfigError: the path names a page, or is a file.
    """
    is_file = folder.exists() and not folder.is_dir()
    if is_file or folder.suffix.lower() in (".html", ".htm"):
        raise ConfigError(
            "there is a file in the place of the folder" if is_file else "the report is a folder, not one page",
            where="--out",
            got=folder,
            expected=f"a folder for {HTML} and {JSON}",
            do=f"Use, for example, --out {FOLDER}",
        )


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write `report.html` and `report.json` to the folder, replacing those of an earlier comparison."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / HTML, html(comparison).encode())
    _replace(folder / JSON, (json.dumps(_finite(comparison.to_json()), indent=2, ensure_ascii=False) + "\n").encode())


def _replace(file: Path, content: bytes) -> None:
    new = file.with_name(f".{file.name}.new")
    new.write_bytes(content)
    new.replace(file)


def _finite(value: Any) -> Any:
    """Replace infinite ends of intervals by null, because JSON has no infinity."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- tables -------------------------------------------------------------------------------------------------------


def columns(rows: Sequence[Row]) -> dict[str, dict[str, tuple[str, str]]]:
    """Return the columns of the table by heading. Each cell is a value and its interval, which may be empty."""
    scores = dict.fromkeys(name for row in rows for name in row.scores)
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for judge in judges(rows):
        found[f"preferred to {start_in(rows)} by {judge}"] = {
            model: (percent(rate["rate"], 1), f"{percent(rate['low'], 1)} to {percent(rate['high'], 1)}")
            for model, rate in rates_of(rows, judge).items()
        }
    for name in scores:
        found[f"mean {name}"] = {row.model: _estimate(row.scores[name]) for row in rows if name in row.scores}
    found["KL, nats"] = {row.model: _kl(row.metrics) for row in rows if "kl" in row.metrics}
    for head, name in (("length, tokens", "response_length"), ("perplexity", "perplexity")):
        found[head] = {row.model: (f"{row.metrics[name]:.4g}", "") for row in rows if name in row.metrics}
    return {head: cells for head, cells in found.items() if cells}


def judges(rows: Sequence[Row]) -> list[str]:
    """Return the names of the judges of all models."""
    return list(dict.fromkeys(judge for row in rows for judge in row.win_rate))


def rates_of(rows: Sequence[Row], judge: str) -> dict[str, Mapping[str, float]]:
    """Return the win rate of each model by a judge."""
    return {row.model: row.win_rate[judge] for row in rows if judge in row.win_rate}


def _estimate(estimate: Estimate) -> tuple[str, str]:
    ends = f"{estimate.low:.3g} to {estimate.high:.3g}" if math.isfinite(estimate.low) else ""
    return f"{estimate.mean:.3g}", ends


def _kl(metrics: Mapping[str, float]) -> tuple[str, str]:
    error = metrics.get("kl_standard_error")
    known = error is not None and math.isfinite(error) and error > 0
    return f"{metrics['kl']:.3g}", f"± {1.96 * error:.2g}" if known and error is not None else ""


def cost(row: Row) -> tuple[str, str, str, str]:
    """Return the training time, the time of its prerequisites, the peak memory and the peak GPU memory as texts."""
    return (
        DASH if row.seconds is None else f"{row.seconds:.1f} s",
        f"{row.seconds_before:.1f} s" if row.seconds_before else DASH,
        _memory(row.peak_memory),
        _memory(row.peak_device_memory),
    )


def _memory(size: int | None) -> str:
    return DASH if size is None else f"{size / 2**30:.2f} GiB"


def rows_learned_from(row: Row) -> str:
    """Return the number of training rows of each kind as text."""
    return ", ".join(f"{count:,} {kind}" for kind, count in row.learnt_from.items()) or DASH


def seed_table(found: OverSeeds, start: str) -> Figures:
    """Return the win rate over the start of each contender with each seed, and why it has no more of them."""
    stopped = {one.model for one in found.stopped}
    rows: list[list[Cell]] = []
    for model, rates in found.rates.items():
        missing = "stopped" if model in stopped else "–"
        cells = [percent(rates[seed]) if seed in rates else missing for seed in found.seeds]
        rows.append([model, *cells])
    return Figures(f"Preferred to {start}, by seed", ["model", *(f"seed {seed}" for seed in found.seeds)], rows)


# --- pages --------------------------------------------------------------------------------------------------------


def headline(rows: Sequence[Row], seeds: OverSeeds | None = None) -> str:
    """Return the result in a sentence or two: who is best by the first judge, and whether that is certain."""
    found = judges(rows)
    if not found:
        return "No win rates: no judge compared the responses. Choose some under `evaluation`."
    rates = rates_of(rows, found[0])
    ranked = sorted(rates, key=lambda model: rates[model]["rate"], reverse=True)
    first = ranked[0] if seeds is None or seeds.best is None else seeds.best
    best = rates[first]
    judge = judge_name(found[0])
    said = f"{first} is preferred to {start_in(rows)} on {win_rate_text(best)} of the prompts, judged by {judge}."
    if best["low"] <= 0.5 <= best["high"]:
        return f"{said} That may be chance: the interval contains 50 %."
    if seeds is not None:
        unsure = f" It is not clearly better than {_listed(seeds.unsure)}." if seeds.unsure else ""
        return f"{said}{unsure}"
    close = [model for model in ranked[1:] if rates[model]["high"] >= best["low"]]
    if close:
        return f"{said} These prompts cannot tell it apart from {_listed(close)}: the intervals overlap."
    return said


def _listed(names: Sequence[str]) -> str:
    if len(names) > NAMED:
        return f"{len(names)} others"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def charts(comparison: Comparison) -> list[Chart]:
    """Return the charts of the results, most important first."""
    rows, series = comparison.rows, _series(comparison)
    found = [
        win_rate_chart(f"Preferred to {start_in(rows)} by {judge_name(judge)}", rates_of(rows, judge), series)
        for judge in judges(rows)
    ]
    seeds = [] if comparison.over_seeds is None else seed_charts(comparison.over_seeds, series)
    return [*found[:1], *seeds, *found[1:], *score_charts(rows, series), *length_charts(rows, series)]


def _series(comparison: Comparison) -> dict[str, int]:
    return series_of(comparison.rows)


def html(comparison: Comparison) -> str:
    """Return a self-contained page that loads nothing from the network."""
    rows, series = comparison.rows, _series(comparison)
    curves = curve_charts(comparison.curves, series)
    heads = list(columns(rows))
    samples = that_fit((_sample(sample, series) for sample in comparison.samples), SAMPLES)
    return render(
        PACKAGE, "comparison.html.jinja",
        title=_title(comparison),
        kicker="Comparison of optimizers" if comparison.over_seeds is None else "Comparison of settings",
        headline=headline(rows, comparison.over_seeds),
        seeds=comparison.over_seeds,
        seed_table=None if comparison.over_seeds is None else seed_table(comparison.over_seeds, start_in(rows)),
        sentences=comparison.sentences(),
        prompts=_prompts(comparison),
        advice=comparison.advice(),
        failures=[row for row in rows if row.error],
        series={row.model: series[row.model] for row in rows if not row.error},
        charts=charts(comparison),
        curves=curves[:PANELS],
        more_curves=curves[PANELS:],
        results=Figures("All results", ["model", *heads], [[row["model"], *row["cells"]] for row in _table(rows)]),
        costs=Figures(
            "Cost",
            ["model", "training time", "prerequisites", "peak memory", "peak GPU memory", "trained on"],
            [[row.model, *cost(row), rows_learned_from(row)] for row in rows if row.seconds is not None],
        ),
        samples=samples,
        settings=[
            (row.model, row.artifact or "", [f"{name}: {json.dumps(value)}" for name, value in row.settings.items()])
            for row in rows
            if row.settings
        ],
    )  # fmt: skip


def _sample(sample: Mapping[str, Any], series: Mapping[str, int]) -> Sample:
    prompt = [(str(turn["role"]), str(turn["content"])) for turn in sample["prompt"]]
    answers = [
        Answer(model, series[model], given["response"], scored(given["scores"]))
        for model, given in sample["answers"].items()
    ]
    return Sample(prompt, answers)


def scored(scores: Mapping[str, float]) -> list[str]:
    """Return the scores of a response as texts."""
    return [f"{name} {value:.3g}" for name, value in scores.items()]


def markdown(comparison: Comparison, folder: Path | None = None) -> str:
    """Return the report as markdown for Prefect: the result, the table and the charts, without the responses.

    Args:
        comparison: the comparison.
        folder: where `report.html` is, on the machine that ran the flow.
    """
    heads = columns(comparison.rows)
    lines = [
        f"# {plain(_title(comparison))}",
        "",
        f"**{message(headline(comparison.rows, comparison.over_seeds))}**",
        "",
    ]
    if folder is not None:
        lines += [f"The whole report, with responses side by side: {code(folder.absolute() / HTML)}", ""]
    lines += [f"**{plain(row.model)} failed:** {message(row.error)}\n" for row in comparison.rows if row.error]
    lines += [f"- {message(sentence)}" for sentence in comparison.sentences()]
    lines.append("")
    if advice := comparison.advice():
        lines += ["## Advice", "", *(advice_line(one, name) for name, one in advice), ""]
    if (seeds := comparison.over_seeds) is not None:
        lines += [f"{seeds.rule} {seeds.meaning}", ""]
    if found := charts(comparison)[:PANELS]:
        lines += [f"![{plain('; '.join(chart.title for chart in found))}]({picture(found)})", ""]
    lines += [f"| model | {' | '.join(map(plain, heads))} |", "| --- |" + " ---: |" * len(heads)]
    for row in _table(comparison.rows):
        cells = (f"{value} ({ends})" if ends else value for value, ends in row["cells"])
        lines.append(f"| {plain(row['model'])} | {' | '.join(cells)} |")
    lines += [
        "",
        "| model | training time | prerequisites | peak memory | peak GPU memory | trained on |",
        "| --- |" + " ---: |" * 5,
    ]
    lines += [
        f"| {plain(row.model)} | {' | '.join(cost(row))} | {rows_learned_from(row)} |"
        for row in comparison.rows
        if row.seconds is not None
    ]
    return "\n".join(lines) + "\n"


def _title(comparison: Comparison) -> str:
    names = [row.model for row in comparison.rows if not row.is_start]
    return " · ".join(names) if len(names) <= NAMED else f"{len(names)} models"


def _prompts(comparison: Comparison) -> int:
    return int(max((row.metrics.get("prompts", 0) for row in comparison.rows), default=0))


def _table(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    heads = columns(rows)
    for row in rows:
        missing = ("failed" if row.error else DASH, "")
        yield {"model": row.model, "cells": [column.get(row.model, missing) for column in heads.values()]}
