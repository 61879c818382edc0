"""Curves over the steps of a training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from alignment_core.reporting.scales import Frame, frame, limits, short
from alignment_core.reporting.svg import CHARACTER, WIDTH, Chart, fitted, marker, style, tag, text

Curve = Sequence[tuple[float, float]]
"""Steps and values. A value may be infinite or not a number."""

POINTS = 160
HEIGHT = 182.0
"""Height without the names of the curves."""
LINE = 19.0


def line_chart(title: str, curves: Mapping[str, Curve], series: Mapping[str, int], *, named: bool = False) -> Chart:
    """Return one metric by step, one line for each curve.

    Args:
        title: the metric.
        curves: the curves by name, each with at least one point.
        series: the color of each curve by name.
        named: whether the chart has the names of its curves, because no legend of the page has them.
    """
    grouped = {name: groups(curve) for name, curve in curves.items()}
    alone = len(curves) == 1
    seen = [value for name in curves for group in grouped[name] for value in (group.band if alone else (group.mean,))]
    steps = [step for curve in curves.values() for step, _ in curve]
    top = 8 + (LINE * len(curves) if named else 0)
    height = HEIGHT + top
    area = frame(limits(steps, padding=0.0), limits(seen), height, "step", steps=True, top=top)
    marks = "".join(_legend(curves, series)) if named else ""
    marks += "".join(_line(area, grouped[name], series[name], band=alone) for name in curves)
    lost = sum(not math.isfinite(value) for curve in curves.values() for _, value in curve)
    return Chart(
        title=title,
        height=height,
        marks=area.drawn + marks,
        summary="; ".join(_told(name, curve) for name, curve in curves.items()),
        head=("", "first", "lowest", "highest", "last", "steps"),
        rows=tuple((name, *_numbers(curve)) for name, curve in curves.items()),
        note=". ".join(filter(None, (_change(*curves.values()) if alone else "", _gaps(lost)))),
    )


def _change(curve: Curve) -> str:
    first, _, _, last, _ = _numbers(curve)
    return f"{first} → {last}"


def _gaps(lost: int) -> str:
    return f"{lost:,} {'value is not a number' if lost == 1 else 'values are not numbers'}: a gap" if lost else ""


def _legend(curves: Mapping[str, Curve], series: Mapping[str, int]) -> Iterator[str]:
    for place, (name, curve) in enumerate(curves.items()):
        y, told = 13 + LINE * place, _change(curve)
        yield tag("line", x1=4, x2=22, y1=y - 4, y2=y - 4, class_=f"line {style(series[name])}")
        yield marker(series[name], 13, y - 4, 3.5)
        yield text(28, y, fitted(name, WIDTH - 36 - CHARACTER * len(told)), class_="name")
        yield text(WIDTH - 4, y, told, text_anchor="end", class_="value")


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
        marks.append(marker(series, area.x(ends[-1].step), area.y(ends[-1].mean), 3.5))
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
