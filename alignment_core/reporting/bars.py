"""How a whole is divided, and how lengths are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from alignment_core.reporting.scales import SMALLEST, Scale, labels, short, ticks
from alignment_core.reporting.svg import CHARACTER, WIDTH, Chart, anchor_of, escape, fitted, style, tag, text

LINE = 19.0
"""Height of a line of text below a bar."""
BAR = 22.0
PLOT, AXIS = 96.0, 22.0
"""Height of a histogram, and of the axis below it."""


@dataclass(frozen=True)
class Part:
    """A part of a whole."""

    name: str
    count: int
    series: int


def share_chart(title: str, parts: Sequence[Part], what: str) -> Chart:
    """Return one bar that is divided into parts, with a line for each part below it.

    Args:
        title: what is divided.
        parts: the parts in order. At least one count is not 0.
        what: what is counted, such as `records`.
    """
    whole = sum(part.count for part in parts)
    marks, left = [], 0.0
    for part in parts:
        width = WIDTH * part.count / whole
        if part.count:
            shown = tag("title", escape(_told(part, whole)))
            marks.append(
                tag("rect", shown, x=left, y=2, width=max(width - 1, 1), height=BAR, class_=f"bar {style(part.series)}")
            )
        left += width
    for place, part in enumerate(parts):
        y = BAR + 20 + LINE * place
        count = f"{part.count:,} ({_share(part.count, whole)})"
        marks.append(tag("rect", x=0, y=y - 10, width=11, height=11, class_=f"bar {style(part.series)}"))
        marks.append(text(18, y, fitted(part.name, WIDTH - 26 - CHARACTER * len(count)), class_="name"))
        marks.append(text(WIDTH, y, count, text_anchor="end", class_="value"))
    return Chart(
        title=title,
        height=BAR + 12 + LINE * len(parts),
        marks="".join(marks),
        summary="; ".join(_told(part, whole) for part in parts),
        head=("", what, "share"),
        rows=tuple((part.name, f"{part.count:,}", _share(part.count, whole)) for part in parts),
    )


def _told(part: Part, whole: int) -> str:
    return f"{part.name}: {part.count:,} ({_share(part.count, whole)})"


def _share(count: int, whole: int) -> str:
    share = 100 * count / whole
    return f"{share:.0f} %" if count in (0, whole) or 1 <= share <= 99 else f"{share:.1f} %"


@dataclass(frozen=True)
class Distribution:
    """A histogram.

    Attributes:
        name: whose values these are.
        counts: number of values in each bin.
        edges: edges of the bins, one more than bins, ascending.
        median: the median of the values.
        longest: the largest value.
        series: the color.
    """

    name: str
    counts: Sequence[int]
    edges: Sequence[float]
    median: float
    longest: float
    series: int


def histogram_chart(title: str, found: Sequence[Distribution], unit: str) -> Chart:
    """Return histograms over one another on the same axis, with their medians. Their areas are equal.

    Args:
        title: what is distributed.
        found: at least one histogram.
        unit: unit of the values.
    """
    low, high = min(one.edges[0] for one in found), max(one.edges[-1] for one in found)
    x = Scale(low, high if high - low > SMALLEST else low + 1, 4, WIDTH - 4)
    legend = LINE * len(found) + 6
    base = legend + PLOT
    # Widths are shares of the axis. A bin without one is a single value, and counts as one as wide as the axis.
    heights = [
        [
            count / sum(one.counts) / (share if (share := (b - a) / (x.high - x.low)) > 1e-9 else 1)
            for count, a, b in zip(one.counts, one.edges, one.edges[1:], strict=False)
        ]
        for one in found
    ]
    y = Scale(0, max(map(max, heights)) or 1, base, legend + 2)
    marks = [_outline(one, tall, x, y) for one, tall in zip(found, heights, strict=True)]
    for place, one in enumerate(found):
        line, middle = LINE * place + 13, x(one.median)
        marks.append(tag("line", x1=middle, x2=middle, y1=legend, y2=base, class_=f"median {style(one.series)}"))
        marks.append(tag("rect", x=4, y=line - 10, width=11, height=11, class_=f"bar {style(one.series)}"))
        told = f"median {short(one.median)} {unit}"
        marks.append(text(22, line, fitted(one.name, WIDTH - 30 - CHARACTER * len(told)), class_="name"))
        marks.append(text(WIDTH - 4, line, told, text_anchor="end", class_="value"))
    marks.append(tag("line", x1=4, x2=WIDTH - 4, y1=base, y2=base, class_="axis"))
    places = ticks(x.low, x.high)
    for value, name in zip(places, labels(places), strict=True):
        marks.append(text(x(value), base + 16, name, text_anchor=anchor_of(x(value), name)))
    return Chart(
        title=title,
        height=base + AXIS,
        marks="".join(marks),
        summary="; ".join(
            f"{one.name}: median {short(one.median)}, longest {short(one.longest)} {unit}" for one in found
        ),
        head=("", "count", f"median, {unit}", f"longest, {unit}"),
        rows=tuple((one.name, f"{sum(one.counts):,}", short(one.median), short(one.longest)) for one in found),
        note=f"Across: {unit}. Dashed lines: medians",
    )


def _outline(one: Distribution, heights: Sequence[float], x: Scale, y: Scale) -> str:
    places = [(x(one.edges[0]), y(0))]
    for height, start, end in zip(heights, one.edges, one.edges[1:], strict=False):
        places += [(x(start), y(height)), (x(end), y(height))]
    places.append((places[-1][0], y(0)))
    shown = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    return tag("polygon", points=shown, class_=f"area {style(one.series)}")


def distribution(name: str, values: Sequence[float], series: int, bins: int = 30) -> Distribution:
    """Return the histogram of values, of which there is at least one. Bins of equal width up to the largest value."""
    ordered = sorted(values)
    low, high = float(ordered[0]), float(ordered[-1])
    count = min(bins, len(set(ordered)))
    width = (high - low) / count or 1.0
    counts = [0] * count
    for value in ordered:
        counts[min(int((value - low) / width), count - 1)] += 1
    edges = [low + width * place for place in range(count + 1)]
    return Distribution(name, counts, edges, median(ordered), high, series)
