"""Curves drawn with braille dots, for a terminal."""

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

Points = Sequence[tuple[float, float]]

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of the dots of a braille character, by row and column."""
BRAILLE = 0x2800
LABEL = 7
"""Width of the numbers beside a plot."""
SAMPLED, RECORDED = ("score", "kl"), ("loss", "reward_margin", "accuracy", "kl")
"""The metrics that say most about learning from sampled responses, and about every other kind of training."""


def leading(curves: Mapping[str, Collection[float]]) -> list[str]:
    """Return the metrics, two at most, whose curves say how the training goes. Those that never change come last."""
    wanted = SAMPLED if SAMPLED[0] in curves else RECORDED
    found = [name for name in wanted if name in curves]
    return sorted(found, key=lambda name: len(set(curves[name])) < 2)[:2]


def panel(name: str, points: Points, width: int, height: int) -> list[str]:
    """Draw a curve under its name and newest value.

    Returns:
        `height` + 1 lines of `width` characters. The numbers beside the plot are the ends of its vertical axis.
    """
    values = [value for _, value in points]
    low, high = min(values), max(values)
    ends = {0: _short(high, high - low), height - 1: _short(low, high - low)}
    drawn = plot(points, width - LABEL - 1, height)
    lines = [f"{name} {values[-1]:.4g}", *(f"{ends.get(row, ''):>{LABEL}} {line}" for row, line in enumerate(drawn))]
    return [line[:width].ljust(width) for line in lines]


def _short(value: float, span: float) -> str:
    """Format an end of an axis so that it fits beside the plot. What is nothing beside the span is 0."""
    if abs(value) < span / 1000:
        return "0"
    return next(text for digits in (3, 2, 1) if len(text := f"{value:.{digits}g}") <= LABEL or digits == 1)


def plot(points: Points, width: int, height: int) -> list[str]:
    """Draw a curve as `height` lines of `width` characters of 2 x 4 dots each.

    A column of dots shows the mean of its points. Between points that are further apart the curve is straight.
    """
    columns, rows = 2 * width, 4 * height
    values = _resampled(points, columns)
    low, high = min(values), max(values)
    span = high - low
    heights = [(rows - 1) // 2 if span == 0 else round((high - value) / span * (rows - 1)) for value in values]
    cells = [[0] * width for _ in range(height)]
    before = heights[0]
    for column, row in enumerate(heights):
        # A steep curve has no gaps: this column continues where the one before it ended.
        first = row if row == before else before + (1 if row > before else -1)
        for y in range(min(first, row), max(first, row) + 1):
            cells[y // 4][column // 2] |= DOTS[y % 4][column % 2]
        before = row
    return ["".join(chr(BRAILLE + dots) for dots in line) for line in cells]


def _resampled(points: Points, count: int) -> list[float]:
    """Return the curve at `count` evenly spaced places."""
    start, stop = points[0][0], points[-1][0]
    groups: dict[int, list[float]] = {}
    for x, value in points:
        place = 0 if stop == start else round((x - start) / (stop - start) * (count - 1))
        groups.setdefault(place, []).append(value)
    known = sorted((place, math.fsum(values) / len(values)) for place, values in groups.items())
    found = [known[0][1]]
    for (left, value), (right, next_value) in pairwise(known):
        found += [value + (next_value - value) * step / (right - left) for step in range(1, right - left + 1)]
    return found + [found[-1]] * (count - len(found))
