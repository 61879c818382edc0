"""Estimates with their intervals, one under the other, and a measure against another with intervals of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alignment_core.reporting.scales import Scale, frame, labels, limits, short, ticks
from alignment_core.reporting.svg import (
    CHARACTER,
    WIDTH,
    Chart,
    anchor_of,
    fitted,
    marker,
    style,
    tag,
    text,
    told_apart,
)

ROW, AXIS = 40.0, 26.0
"""Height of one estimate, and of the axis below all."""
EDGE = 8.0
POINTS_HEIGHT = 250.0


@dataclass(frozen=True)
class Interval:
    """One estimate.

    Attributes:
        name: whose it is.
        mean: the estimate.
        low, high: its interval; infinite or not a number if it is unknown.
        series: the color.
        text: the estimate and its interval as a person reads them.
    """

    name: str
    mean: float
    low: float
    high: float
    series: int
    text: str

    @property
    def bounded(self) -> bool:
        """Whether the interval is known."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def interval_chart(
    title: str,
    found: Sequence[Interval],
    *,
    across: tuple[float, float] | None = None,
    equal: tuple[float, str] | None = None,
    label: Callable[[Sequence[float]], list[str]] = labels,
    note: str = "",
) -> Chart:
    """Return estimates with intervals, one under the other.

    Args:
        title: what is estimated.
        found: at least one estimate.
        across: range of the axis. None: that of the estimates.
        equal: a value that means no difference, and what it is called.
        label: returns the tick labels.
        note: as in `Chart`.
    """
    if across is None:
        ends = [end for one in found for end in (one.mean, one.low, one.high)]
        across = limits([*ends, *([equal[0]] if equal else [])])
    x = Scale(*across, EDGE, WIDTH - EDGE)
    bottom = ROW * len(found) + 4
    marks = []
    places = ticks(*across)
    # Lines end at the text of a row, which they would cross.
    tracks = [(ROW * place + 20, ROW * place + 36) for place in range(len(found))]
    for value, name in zip(places, label(places), strict=True):
        marks += [tag("line", x1=x(value), x2=x(value), y1=top, y2=end, class_="grid") for top, end in tracks]
        anchor = anchor_of(x(value), name)
        at = 0.0 if anchor == "start" else WIDTH if anchor == "end" else x(value)
        marks.append(text(at, bottom + 16, name, text_anchor=anchor))
    if equal:
        marks += [tag("line", x1=x(equal[0]), x2=x(equal[0]), y1=top, y2=end, class_="equal") for top, end in tracks]
    names = [one.name for one in found]
    if any(fitted(one.name, _room(one)) != one.name for one in found):
        names = told_apart(names)
    marks += [_row(one, name, x, ROW * place) for place, (one, name) in enumerate(zip(found, names, strict=True))]
    told = "; ".join(f"{one.name} {one.text}" for one in found)
    return Chart(
        title=title,
        height=bottom + AXIS,
        marks="".join(marks),
        summary=told + (f". The line is {equal[1]}" if equal else ""),
        head=("", title),
        rows=tuple((one.name, one.text) for one in found),
        note=". ".join(filter(None, (f"Dashed line: {equal[1]}" if equal else "", note))),
    )


def _room(one: Interval) -> float:
    """Return the width beside the text of an estimate."""
    return WIDTH - 2 * EDGE - len(one.text) * CHARACTER


def _row(one: Interval, name: str, x: Scale, top: float) -> str:
    y = top + 28
    marks = [
        text(EDGE, top + 15, fitted(name, _room(one)), class_="name"),
        text(WIDTH - EDGE, top + 15, one.text, text_anchor="end", class_="value"),
    ]
    if one.bounded:
        low, high = x(one.low), x(one.high)
        marks.append(tag("line", x1=low, x2=high, y1=y, y2=y, class_=f"range {style(one.series)}"))
        marks += [
            tag("line", x1=end, x2=end, y1=y - 5, y2=y + 5, class_=f"line {style(one.series)}") for end in (low, high)
        ]
    marks.append(marker(one.series, x(one.mean), y))
    return "".join(marks)


@dataclass(frozen=True)
class Point:
    """One model on two measures.

    Attributes:
        name: the model.
        x, y: the measures.
        x_error: half of the interval of `x`; 0 if it is unknown.
        low, high: the interval of `y`; infinite if it is unknown.
        series: the color.
    """

    name: str
    x: float
    y: float
    x_error: float
    low: float
    high: float
    series: int

    @property
    def bounded(self) -> bool:
        """Whether the interval of `y` is known."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def point_chart(title: str, across: str, points: Sequence[Point], *, shares: bool = False) -> Chart:
    """Return one measure against another, a point with intervals for each model.

    Args:
        title: the measure up.
        across: the measure across.
        points: at least one.
        shares: whether both are shares, the one across of at least one half. A dashed line is where they are equal.
    """
    xs = [end for one in points for end in (one.x - one.x_error, one.x + one.x_error)]
    ys = [end for one in points for end in (one.y, one.low, one.high)]
    area = frame((0.45, 1.03) if shares else limits(xs), (-0.03, 1.05) if shares else limits(ys), POINTS_HEIGHT, across)
    low, high = max(area.x.low, 0.0), min(area.x.high, 1.0)
    equal = tag("line", x1=area.x(low), x2=area.x(high), y1=area.y(low), y2=area.y(high), class_="equal")
    marks, taken = [equal] if shares else [], [(area.x(one.x) - 8, area.y(one.y) - 8, 16.0, 16.0) for one in points]
    for one in points:
        x, y = area.x(one.x), area.y(one.y)
        kind = f"line {style(one.series)}"
        if one.x_error > 0:
            marks.append(
                tag("line", x1=area.x(one.x - one.x_error), x2=area.x(one.x + one.x_error), y1=y, y2=y, class_=kind)
            )
        if one.bounded:
            marks.append(tag("line", x1=x, x2=x, y1=area.y(one.low), y2=area.y(one.high), class_=kind))
        marks.append(marker(one.series, x, y, 5))
    marks += [_name(one, area.x(one.x), area.y(one.y), taken, area.x.start) for one in points]
    return Chart(
        title=title,
        height=POINTS_HEIGHT,
        marks=area.drawn + "".join(marks),
        summary="; ".join(f"{one.name}: {short(one.y)} at {short(one.x)}" for one in points) + f". Across: {across}",
        head=("", title, across),
        rows=tuple((one.name, _with_ends(one), _with_error(one)) for one in points),
        note="Dashed line: equal" if shares else "Lines are 95 % intervals",
    )


def _name(one: Point, x: float, y: float, taken: list[tuple[float, float, float, float]], start: float) -> str:
    """Return the name beside its point, where it covers no other point or name; nothing if there is no such place."""
    width = len(one.name) * CHARACTER
    for left, top in ((x + 8, y - 18), (x - 8 - width, y - 18), (x + 8, y + 4), (x - 8 - width, y + 4)):
        box = (left, top, width, 14.0)
        if left < start or left + width > WIDTH or top < 0 or any(_overlap(box, other) for other in taken):
            continue
        taken.append(box)
        return text(left, top + 11, one.name, class_="name")
    return ""


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return all(one[i] < other[i] + other[i + 2] and other[i] < one[i] + one[i + 2] for i in (0, 1))


def _with_ends(one: Point) -> str:
    ends = f" ({short(one.low)} to {short(one.high)})" if one.bounded else ""
    return f"{short(one.y)}{ends}"


def _with_error(one: Point) -> str:
    return short(one.x) + (f" ± {one.x_error:.2g}" if one.x_error > 0 else "")
