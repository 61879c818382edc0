"""Charts of the data report: SVG for the HTML page, whose colors the page sets, and a PNG for markdown."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping
from typing import Any

WIDTH, HEIGHT, BASE = 320, 110, 84
"""Size of a histogram, and the height of its axis, in SVG units."""
BAR = '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'


def length_charts(lengths: Mapping[str, Mapping[str, Any]], unit: str) -> list[str]:
    """Return one histogram of the lengths of each kind of text, as SVG."""
    return [_histogram(name, spread, unit) for name, spread in lengths.items()]


def _histogram(name: str, spread: Mapping[str, Any], unit: str) -> str:
    counts, edges = spread["histogram"], spread["edges"]
    tallest, start = max(counts), edges[0]
    scale = WIDTH / ((edges[-1] - start) or 1)
    bars = "".join(
        BAR.format(
            (left - start) * scale,
            BASE - 60 * count / tallest,
            max((right - left) * scale - 0.5, 1),
            60 * count / tallest,
            html.escape(f"{left:.0f} to {right:.0f} {unit}: {count}"),
        )
        for count, left, right in zip(counts, edges, edges[1:], strict=False)
    )
    median = min(max((spread["median"] - start) * scale, 0), WIDTH)
    title = html.escape(f"{name}: median {spread['median']:.0f} {unit}")
    return (
        '<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}"><text x="0" y="14">{title}</text>{bars}'
        '<line class="axis" x1="0" x2="{width}" y1="{base}" y2="{base}"/>'
        '<line class="median" x1="{median:.1f}" x2="{median:.1f}" y1="20" y2="{base}"/>'
        '<text x="0" y="102">{low}</text><text x="{width}" y="102" text-anchor="end">{high}</text></svg>'
    ).format(
        width=WIDTH, height=HEIGHT, base=BASE, title=title, bars=bars, median=median, low=spread["min"],
        high=spread["max"],
    )  # fmt: skip


def balance_chart(balance: Mapping[str, Any]) -> str | None:
    """Return a bar that is divided into desirable and undesirable responses, as SVG. None: there are no labels."""
    up, down = balance["desirable"], balance["undesirable"]
    if not up + down:
        return None
    edge = WIDTH * up / (up + down)
    title = f"{up} desirable, {down} undesirable"
    return (
        f'<svg viewBox="0 0 {WIDTH} 44" role="img" aria-label="{title}"><text x="0" y="14">{title}</text>'
        f'<rect class="up" x="0" y="22" width="{edge:.1f}" height="18"/>'
        f'<rect class="down" x="{edge:.1f}" y="22" width="{WIDTH - edge:.1f}" height="18"/></svg>'
    )


def draw_lengths(lengths: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Draw histograms of the lengths. Returns a PNG of about 20 kB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 2.6))
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.12, top=0.9, wspace=0.2)
    for place, (title, of_prompts) in enumerate((("prompts", True), ("answers", False)), 1):
        axes = figure.add_subplot(1, 2, place, title=title)
        axes.tick_params(labelsize=7)
        for name, spread in lengths.items():
            if (name == "prompts") == of_prompts:
                axes.stairs(spread["histogram"], spread["edges"], label=f"{name}: median {spread['median']:.0f}")
        if axes.patches:
            axes.legend(fontsize=7)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=80)
    return target.getvalue()
