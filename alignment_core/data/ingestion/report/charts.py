"""Charts of the data report: what is used, how labels are balanced, and how long prompts and answers are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignment_core.reporting.bars import Distribution, Part, histogram_chart, share_chart
from alignment_core.reporting.svg import BASELINE, Chart

GROUPS = {
    "Prompts": ("prompts",),
    "Chosen and rejected answers": ("chosen", "rejected"),
    "Desirable and undesirable responses": ("desirable", "undesirable"),
    "Demonstrations": ("demonstrations",),
}
"""Which lengths are drawn over one another, because their difference matters."""
GOOD, BAD, NEITHER, LEFT_OUT = 2, 1, 0, BASELINE
SIDES = {"chosen": GOOD, "desirable": GOOD, "rejected": BAD, "undesirable": BAD}


def data_charts(report: Mapping[str, Any]) -> list[Chart]:
    """Return the charts of a data report, most important first.

    Args:
        report: from `make_report`.
    """
    return [*_used(report), *_balance(report["balance"]), *length_charts(report["lengths"], report["unit"])]


def _used(report: Mapping[str, Any]) -> list[Chart]:
    """Divide all records into those that are used and those that are not, by the reason."""
    used, of = report["used"]["records"], report["used"]["of"]
    if not of:
        return []
    dropped, quarantined = (sum(report[name].values()) for name in ("dropped", "quarantined"))
    rest = of - used - dropped - quarantined
    parts = [
        Part("used", used, GOOD),
        Part("cannot be used (quarantined)", quarantined, BAD),
        Part("no judgment (dropped)", dropped, 3),
        Part("duplicates and settled votes", rest, LEFT_OUT),
    ]
    return [share_chart("Records", [part for part in parts if part.count or part.name == "used"], "records")]


def _balance(balance: Mapping[str, Any]) -> list[Chart]:
    up, down = balance["desirable"], balance["undesirable"]
    if not up + down:
        return []
    return [share_chart("Labels", [Part("desirable", up, GOOD), Part("undesirable", down, BAD)], "responses")]


def length_charts(lengths: Mapping[str, Mapping[str, Any]], unit: str) -> list[Chart]:
    """Return histograms of the lengths. Those of two sides of a judgment are drawn over one another."""
    charts = []
    for title, names in GROUPS.items():
        found = [
            Distribution(
                name, spread["histogram"], spread["edges"], spread["median"], spread["max"], SIDES.get(name, NEITHER)
            )
            for name in names
            if (spread := lengths.get(name))
        ]
        if found:
            charts.append(histogram_chart(title, found, unit))
    return charts
