"""The training curves of a stage from its `metrics.jsonl`: which to show, and as one small picture for Prefect."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from alignment_core.reporting.intervals import Point, point_chart
from alignment_core.reporting.lines import line_chart
from alignment_core.reporting.scales import titled
from alignment_core.reporting.svg import Chart, picture

PANELS = 6
"""Number of curves that are shown at once."""
FIRST = ("loss", "score", "reward", "kl", "accuracy", "margin", "length")
"""A metric of each of these words is shown first, in this order."""
LAST = ("grad_norm", "learning_rate", "logps", "kl_coef", "token_budget", "checkpointing")
"""Metrics whose name contains one of these words are shown last."""

SIDES = {"chosen": 2, "rejected": 1, "desirable": 2, "undesirable": 1}
"""The two sides of a judgment, whose metrics are drawn together, with their colors."""

Curve = list[tuple[float, float]]


def read_curves(history: Path) -> dict[str, Curve]:
    """Return the steps and values of every metric of a `metrics.jsonl`. A value may be infinite or not a number."""
    curves: dict[str, Curve] = {}
    for line in history.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for name, value in entry.items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                curves.setdefault(name, []).append((entry["step"], value))
    return curves


def in_order(reported: Sequence[Mapping[str, Curve]]) -> list[str]:
    """Return the metrics that are curves, those that say most first.

    One metric for each word of `FIRST` comes before a second one of a word, and what most runs report comes first. All
    other metrics follow: an optimizer may log anything.

    Args:
        reported: the curves of each run by metric. A curve of a single point is none.
    """
    counts = Counter(name for curves in reported for name, curve in curves.items() if is_curve(curve))
    last = sorted(name for name in counts if any(word in name for word in LAST))
    of_word = [
        sorted(
            (name for name in counts if word in name.split("_") and name not in last),
            key=lambda name, word=word: (-counts[name], name != word, name),  # type: ignore[misc]
        )
        for word in FIRST
    ]
    first = [name for turn in zip_longest(*of_word) for name in turn if name]
    return list(dict.fromkeys([*first, *sorted(set(counts) - set(last)), *last]))


def is_curve(curve: Curve) -> bool:
    """Return whether there are at least two values that are numbers."""
    return sum(math.isfinite(value) for _, value in curve) > 1


def curve_charts(curves: Mapping[str, Mapping[str, Curve]], series: Mapping[str, int]) -> list[Chart]:
    """Return a chart of each metric with the curves of all runs, in the order of `in_order`.

    Args:
        curves: curves by metric, by run.
        series: color of each run.
    """
    charts: list[Chart] = []
    names = in_order(list(curves.values()))
    while names:
        sides = [names[0]] if len(curves) > 1 else _sides(names[0], names)
        names = [name for name in names if name not in sides]
        charts.append(_of_runs(sides[0], curves, series) if len(sides) == 1 else _of_sides(sides, *curves.values()))
    return charts


def _sides(name: str, names: Sequence[str]) -> list[str]:
    """Return a metric with those that measure the same on the other side of a judgment."""
    stem, _, side = name.rpartition("_")
    if stem and side in SIDES:
        return [f"{stem}_{each}" for each in SIDES if f"{stem}_{each}" in names]
    return [name]


def _of_runs(name: str, curves: Mapping[str, Mapping[str, Curve]], series: Mapping[str, int]) -> Chart:
    drawn = {run: of_one[name] for run, of_one in curves.items() if is_curve(of_one.get(name, []))}
    return line_chart(titled(name), drawn, series)


def _of_sides(names: Sequence[str], curves: Mapping[str, Curve]) -> Chart:
    stem = names[0].rpartition("_")[0]
    drawn = {name.rpartition("_")[2]: curves[name] for name in names}
    return line_chart(titled(stem), drawn, SIDES, named=True)


def draw_curves(history: Path) -> str:
    """Return the first metrics of a stage as a `data:` URI of an SVG image. Empty if there are none."""
    shown = curve_charts({"": read_curves(history)}, {"": 0})[:PANELS]
    return picture(shown) if shown else ""


def reliability(calibration: Path) -> Chart:
    """Return the accuracy of a reward model against its confidence.

    Args:
        calibration: the reward model's `calibration.json`.
    """
    bins = [bin_ for bin_ in json.loads(calibration.read_text(encoding="utf-8"))["bins"] if bin_["pairs"]]
    points = [
        Point(_pairs(bin_["pairs"]), bin_["confidence"], bin_["accuracy"], 0.0, math.nan, math.nan, 0) for bin_ in bins
    ]
    return point_chart("Reward model: share of pairs in the right order", "its confidence", points, shares=True)


def _pairs(count: int) -> str:
    return f"{count:,} {'pair' if count == 1 else 'pairs'}"
