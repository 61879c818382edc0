"""The report of a comparison: HTML that opens offline, markdown with pictures for Prefect, and JSON."""

import base64
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jinja2

from alignment_core.markdown import message, plain
from alignment_flows.reports.comparison import START, Comparison, Estimate, Row
from alignment_flows.reports.curves import Curve, downsampled

HTML, JSON, FRONTIER, CURVES = "report.html", "report.json", "frontier.png", "curves.png"
COLOURS = ("0.5", "tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")
SHOWN_CURVES = ("loss", "score", "kl", "accuracy", "response_length", "margin")
"""Metrics whose name contains one of these words are drawn."""
PANELS = 6
CHARACTERS = 600
DASH = "–"


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write `report.html`, `report.json` and the pictures to the folder, replacing those of an earlier comparison."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = draw(comparison)
    for name in (FRONTIER, CURVES):
        _replace(folder / name, pictures[name]) if name in pictures else (folder / name).unlink(missing_ok=True)
    _replace(folder / HTML, html(comparison, pictures).encode())
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
    judges = dict.fromkeys(judge for row in rows for judge in row.win_rate)
    scores = dict.fromkeys(name for row in rows for name in row.scores)
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for judge in judges:
        rates = {row.model: row.win_rate[judge] for row in rows if judge in row.win_rate}
        found[f"preferred to {START} by {judge}"] = {
            model: (_share(rate["rate"]), f"{_share(rate['low'])} to {_share(rate['high'])}")
            for model, rate in rates.items()
        }
    for name in scores:
        found[f"mean {name}"] = {row.model: _estimate(row.scores[name]) for row in rows if name in row.scores}
    found["KL, nats"] = {row.model: _kl(row.metrics) for row in rows if "kl" in row.metrics}
    for head, name in (("length, tokens", "response_length"), ("perplexity", "perplexity")):
        found[head] = {row.model: (f"{row.metrics[name]:.4g}", "") for row in rows if name in row.metrics}
    return {head: cells for head, cells in found.items() if cells}


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


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


# --- pages --------------------------------------------------------------------------------------------------------


def html(comparison: Comparison, pictures: Mapping[str, bytes]) -> str:
    """Return a self-contained page that loads nothing from the network."""
    text = (files(__package__) / "templates" / "comparison.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["short"] = lambda text: text if len(text) <= CHARACTERS else text[:CHARACTERS] + "…"
    environment.filters["number"] = lambda value: f"{value:.3g}"
    named = {"Score against KL": FRONTIER, "Training curves": CURVES}
    return environment.from_string(text).render(
        title=_title(comparison),
        rows=comparison.rows,
        prompts=_prompts(comparison),
        heads=list(columns(comparison.rows)),
        table=list(_table(comparison.rows)),
        costs=[
            {"model": row.model, "cells": cost(row), "learnt_from": rows_learned_from(row)}
            for row in comparison.rows
            if row.seconds is not None
        ],
        pictures={head: base64.b64encode(pictures[name]).decode() for head, name in named.items() if name in pictures},
        samples=comparison.samples,
        models=[row.model for row in comparison.rows if any(row.model in s["answers"] for s in comparison.samples)],
    )


def markdown(comparison: Comparison) -> str:
    """Return the report as markdown for Prefect, with the pictures and without the responses."""
    heads = columns(comparison.rows)
    lines = [f"# {_title(comparison)}", ""]
    lines += [f"**{plain(row.model)} failed:** {message(row.error)}\n" for row in comparison.rows if row.error]
    lines += [f"{message(sentence)}\n" for sentence in comparison.sentences()]
    lines += [f"| model | {' | '.join(map(plain, heads))} |", "| --- |" + " ---: |" * len(heads)]
    for row in _table(comparison.rows):
        cells = (
            " ".join(filter(None, (cell["value"], cell["range"] and f"({cell['range']})"))) for cell in row["cells"]
        )
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
    for name, picture in draw(comparison, dpi=64).items():
        lines += ["", f"![{name}](data:image/png;base64,{base64.b64encode(picture).decode()})"]
    return "\n".join(lines) + "\n"


def _title(comparison: Comparison) -> str:
    return " · ".join(row.model for row in comparison.rows if row.model != START)


def _prompts(comparison: Comparison) -> int:
    return int(max((row.metrics.get("prompts", 0) for row in comparison.rows), default=0))


def _table(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    heads = columns(rows)
    for row in rows:
        cells = [column.get(row.model, ("failed" if row.error else DASH, "")) for column in heads.values()]
        yield {"model": row.model, "cells": [{"value": value, "range": ends} for value, ends in cells]}


# --- pictures -----------------------------------------------------------------------------------------------------


def draw(comparison: Comparison, dpi: int = 120) -> dict[str, bytes]:
    """Draw score against KL and the training curves as PNG. Pictures without data are left out."""
    found = {FRONTIER: _frontier(comparison.rows, dpi), CURVES: _training(comparison.curves, dpi)}
    return {name: picture for name, picture in found.items() if picture is not None}


def _frontier(rows: Sequence[Row], dpi: int) -> bytes | None:
    names = list(dict.fromkeys(name for row in rows for name in row.scores if "kl" in row.metrics))
    if not names:
        return None
    figure, axes = _figure(len(names), (4.6, 3.4))
    for axis, name in zip(axes, names, strict=True):
        for row, colour in zip(rows, _colours(rows), strict=True):
            if name in row.scores:
                score, error = row.scores[name], row.metrics.get("kl_standard_error") or 0.0
                ends = [[score.mean - score.low], [score.high - score.mean]] if math.isfinite(score.low) else None
                wide = 1.96 * error if math.isfinite(error) else 0.0
                axis.errorbar(
                    row.metrics["kl"],
                    score.mean,
                    yerr=ends,
                    xerr=wide,
                    fmt="o",
                    color=colour,
                    capsize=3,
                    label=row.model,
                )
        axis.set(xlabel="KL from the SFT model, nats per response", title=f"mean {name}")
        axis.grid(alpha=0.3)
    axes[0].legend()
    return _png(figure, dpi)


def shown_curves(curves: Mapping[str, Mapping[str, Curve]]) -> list[str]:
    """Return the metrics to draw: one per word of `SHOWN_CURVES` in turn, those that most optimizers report first."""
    reported = Counter(name for of_one in curves.values() for name, curve in of_one.items() if len(curve) > 1)
    of_word = [
        sorted(
            (name for name in reported if word == name or word in name.split("_")),
            key=lambda name, word=word: (-reported[name], name != word),  # type: ignore[misc]
        )
        for word in SHOWN_CURVES
    ]
    return list(dict.fromkeys(name for turn in zip_longest(*of_word) for name in turn if name))[:PANELS]


def _training(curves: Mapping[str, Mapping[str, Curve]], dpi: int) -> bytes | None:
    chosen = shown_curves(curves)
    if not chosen:
        return None
    figure, axes = _figure(len(chosen), (3.6, 2.4))
    for axis, name in zip(axes, chosen, strict=True):
        for optimizer, colour in zip(curves, COLOURS[1:] * len(curves), strict=False):
            if name in curves[optimizer]:
                axis.plot(
                    *zip(*downsampled(curves[optimizer][name]), strict=True),
                    color=colour,
                    label=optimizer,
                    linewidth=1.2,
                )
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return _png(figure, dpi)


def _figure(panels: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    # pyplot would keep every figure in memory and look for a display.
    from matplotlib.figure import Figure

    across = min(panels, 3)
    down = -(-panels // across)
    figure = Figure(figsize=(size[0] * across, size[1] * down), layout="constrained")
    return figure, [figure.add_subplot(down, across, place) for place in range(1, panels + 1)]


def _colours(rows: Sequence[Row]) -> list[str]:
    """Return gray for the SFT model and a different color for each optimizer."""
    others = iter(COLOURS[1:] * len(rows))
    return [COLOURS[0] if row.model == START else next(others) for row in rows]


def _png(figure: Any, dpi: int) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi)
    return picture.getvalue()
