"""Curves over the steps of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

from alignment_core.reporting.scales import Frame, frame, limits, short
from alignment_core.reporting.svg import WIDTH, Chart, marker, style, tag, text

Curve = Sequence[tuple[float, float]]
"""Steps and values. A value may be infinite or not a number."""

POINTS = 160
HEIGHT = 190.0


def line_chart(title: str, curves: Mapping[str, Curve], series: Mapping[str, int], across: str = "step") -> Chart:
    """Return one metric by step, one line for each curve.

    Args:
        title: the metric.
        curves: the curves by name, each with at least one point.
        series: the color of each curve by name.
        across: what the axis across shows.
    """
    grouped = {name: groups(curve) for name, curve in curves.items()}
    alone = len(curves) == 1
    seen = [value for name in curves for group in grouped[name] for value in (group.band if alone else (group.mean,))]
    steps = [step for curve in curves.values() for step, _ in curve]
    area = frame(limits(steps, padding=0.0), limits(seen), HEIGHT, across, steps=True)
    marks = "".join(_line(area, grouped[name], series[name], band=alone) for name in curves)
    lost = sum(not math.isfinite(value) for curve in curves.values() for _, value in curve)
    return Chart(
        title=title,
        height=HEIGHT,
        marks=area.drawn + marks,
        summary="; ".join(_told(name, curve) for name, curve in curves.items()),
        head=("", "first", "lowest", "highest", "last", across + "s"),
        rows=tuple((name, *_numbers(curve)) for name, curve in curves.items()),
        note=f"{lost} {'value is not a number' if lost == 1 else 'values are not numbers'}: a gap" if lost else "",
    )


class Group:
    """Neighboring points of a curve that are drawn as one.

    Attributes:
        step: their mean step.
        mean: their mean value; not a number if none of them is finite.
        band: their lowest and highest value.
    """

    def __init__(self, points: Curve) -> None:
        finite = [value for _, value in points if math.isfinite(value)]
        self.step = sum(step for step, _ in points) / len(points)
        self.mean = sum(finite) / len(finite) if finite else math.nan
        self.band = (min(finite), max(finite)) if finite else (math.nan, math.nan)


def groups(curve: Curve, points: int = POINTS) -> list[Group]:
    """Return a curve as at most `points` groups of neighbors, so that spikes stay visible."""
    size = -(-len(curve) // points)
    return [Group(curve[start : start + size]) for start in range(0, len(curve), size)]


def _line(area: Frame, drawn: Sequence[Group], series: int, *, band: bool) -> str:
    marks = []
    for finite, run in groupby(drawn, key=lambda group: math.isfinite(group.mean)):
        if not finite:
            continue
        part = list(run)
        if band and len(part) > 1 and any(high > low for low, high in (group.band for group in part)):
            edge = [(group.step, group.band[1]) for group in part]
            edge += [(group.step, group.band[0]) for group in reversed(part)]
            marks.append(tag("polygon", points=_places(area, edge), class_=f"band {style(series)}"))
        places = _places(area, [(group.step, group.mean) for group in part])
        marks.append(tag("polyline", points=places, class_=f"line {style(series)}"))
    ends = [group for group in drawn if math.isfinite(group.mean)]
    if ends:
        x, y = area.x(ends[-1].step), area.y(ends[-1].mean)
        marks.append(marker(series, x, y, 3.5))
        if band:
            above = y - 8 if y > 24 else y + 18
            marks.append(text(min(x + 4, WIDTH - 2), above, short(ends[-1].mean), text_anchor="end", class_="value"))
    return "".join(marks)


def _places(area: Frame, points: Curve) -> str:
    return " ".join(f"{area.x(step):.1f},{area.y(value):.1f}" for step, value in points)


def _told(name: str, curve: Curve) -> str:
    finite = [(step, value) for step, value in curve if math.isfinite(value)]
    if not finite:
        return f"{name}: no value is a number"
    (first, start), (last, end) = finite[0], finite[-1]
    return f"{name}: {short(start)} at step {first:g}, {short(end)} at step {last:g}"


def _numbers(curve: Curve) -> tuple[str, ...]:
    finite = [value for _, value in curve if math.isfinite(value)]
    if not finite:
        return ("–",) * 4 + (f"{len(curve):,}",)
    return (*map(short, (finite[0], min(finite), max(finite), finite[-1])), f"{len(curve):,}")
