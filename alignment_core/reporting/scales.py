"""From values to places on a chart, and where the ticks of an axis are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from alignment_core.reporting.svg import CHARACTER, WIDTH, tag, text

TICKS = 5
RIGHT, TOP, BOTTOM = 10.0, 8.0, 34.0
"""Margins of a plot with two axes, in SVG units. The left one depends on the labels."""


SMALLEST = 1e-300
"""The smallest range that an axis shows. Below, quotients of differences overflow."""


@dataclass(frozen=True)
class Scale:
    """Maps `low` to `start` and `high` to `end`, linearly."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def limits(values: Iterable[float], *, padding: float = 0.05) -> tuple[float, float]:
    """Return the range of the finite values with some padding. A single value is in the middle of its range."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if high - low <= max(1e-9 * max(abs(low), abs(high)), SMALLEST):
        room = abs(low) / 2 or 0.5
        return low - room, high + room
    room = padding * (high - low)
    return low - room, high + room


def ticks(low: float, high: float, count: int = TICKS, *, whole: bool = False) -> list[float]:
    """Return about `count` round values between `low` and `high`, at distances of 1, 2 or 5 times a power of ten."""
    rough = max((high - low) / count, SMALLEST)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    if whole:
        step = max(round(step), 1)
    first = math.ceil(low / step - 1e-9)
    return [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]


def labels(values: Sequence[float]) -> list[str]:
    """Return tick labels with as many digits as their distance needs."""
    if not values:
        return []
    largest = max(map(abs, values))
    step = min((b - a for a, b in pairwise(values)), default=largest or 1.0)
    if largest >= 1e6 or (largest and largest < 1e-3) or step < 1e-4:
        return ["0" if value == 0 else f"{value:.3g}" for value in values]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{value + 0.0:,.{digits}f}" for value in values]


def short(value: float) -> str:
    """Return a number with three digits, or whole if it is larger."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def titled(name: str) -> str:
    """Return the name of a metric as a title."""
    words = ["KL" if word == "kl" else word for word in name.split("_") if word]
    shown = " ".join(words)
    return f"{shown[:1].upper()}{shown[1:]}"


@dataclass(frozen=True)
class Frame:
    """Two axes.

    Attributes:
        x, y: the scales.
        drawn: grid, ticks and labels, which lie below the data.
    """

    x: Scale
    y: Scale
    drawn: str


def frame(
    across: tuple[float, float],
    up: tuple[float, float],
    height: float,
    label: str,
    *,
    steps: bool = False,
    top: float = TOP,
) -> Frame:
    """Return axes for a range across and one up.

    Args:
        across, up: the ranges.
        height: height of the chart.
        label: what the axis across shows.
        steps: whether that axis has whole numbers only.
        top: where the plot begins.
    """
    rows = ticks(*up)
    names = labels(rows)
    left = max((len(name) for name in names), default=1) * CHARACTER + 6
    x = Scale(*across, left, WIDTH - RIGHT)
    y = Scale(*up, height - BOTTOM, top)
    drawn = [tag("line", x1=left, x2=WIDTH - RIGHT, y1=y(value), y2=y(value), class_="grid") for value in rows]
    drawn += [
        text(left - 6, y(value) + 4, name, text_anchor="end") for value, name in zip(rows, names, strict=True)
    ]  # fmt: skip
    columns = ticks(*across, whole=steps)
    for value, name in zip(columns, labels(columns), strict=True):
        place = x(value)
        half = len(name) * CHARACTER / 2
        anchor = "end" if place + half > WIDTH else "middle"
        drawn.append(tag("line", x1=place, x2=place, y1=height - BOTTOM, y2=height - BOTTOM + 4, class_="axis"))
        drawn.append(text(min(place, WIDTH), height - BOTTOM + 16, name, text_anchor=anchor))
    drawn.append(tag("line", x1=left, x2=WIDTH - RIGHT, y1=height - BOTTOM, y2=height - BOTTOM, class_="axis"))
    drawn.append(text((left + WIDTH - RIGHT) / 2, height - 4, label, text_anchor="middle"))
    return Frame(x, y, "".join(drawn))
