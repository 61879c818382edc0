"""Elements of SVG as text, and what every chart consists of."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from alignment_core.palette import palette

WIDTH = 360.0
"""Width of a chart in SVG units, of which a phone shows about one per pixel."""
COLORS, SHAPES = 6, 4
"""Number of colors and of shapes by which the series of a chart differ. With the dashes they tell 24 series apart."""
BASELINE = -1
"""Series of the model that the others are compared with. It is gray."""
CHARACTER = 6.6
"""Mean width of a character of 12 units, with some to spare."""
UNSAFE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
"""Characters that XML does not allow."""


@dataclass(frozen=True)
class Chart:
    """A drawing, and the same in words and in numbers.

    Attributes:
        title: what is drawn.
        height: height of the drawing in SVG units. Its width is `WIDTH`.
        marks: the elements of the drawing.
        summary: what a person who cannot see the drawing has to know.
        head: headings of the table of numbers.
        rows: rows of that table.
        note: what the drawing leaves out, or how to read it.
    """

    title: str
    height: float
    marks: str
    summary: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    @property
    def svg(self) -> str:
        """The drawing as an element of an HTML page."""
        return tag(
            "svg", self.marks, viewBox=f"0 0 {WIDTH:.0f} {self.height:.0f}", role="img",
            aria_label=f"{self.title}. {self.summary}",
        )  # fmt: skip


def tag(name: str, content: str = "", **attributes: str | float) -> str:
    """Return an element. The content is markup, the attributes are text; `class_` and `stroke_width` lose the `_`."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"' for key, value in attributes.items() if value != ""
    )
    return f"<{name}{shown}>{content}</{name}>" if content else f"<{name}{shown}/>"


def _value(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")


def escape(text: str) -> str:
    """Return the text as markup that shows it."""
    return html.escape(UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text))


def text(x: float, y: float, shown: str, **attributes: str | float) -> str:
    """Return a line of text that starts, ends or has its middle at `x`, by `text_anchor`."""
    return tag("text", escape(shown), x=x, y=y, **attributes)


def anchor_of(x: float, shown: str) -> str:
    """Return the `text_anchor` at which a text around `x` stays within the width of a chart."""
    half = len(shown) * CHARACTER / 2
    return "start" if x - half < 0 else "end" if x + half > WIDTH else "middle"


def fitted(shown: str, width: float) -> str:
    """Return the text, cut to about this width."""
    room = max(int(width / CHARACTER), 1)
    return shown if len(shown) <= room else f"{shown[: room - 1]}…"


def told_apart(names: Sequence[str]) -> list[str]:
    """Return names without the words that all names of several words share, for a place where they are too long."""
    words = [name.split() for name in names]
    several = [set(each) for each in words if len(each) > 1]
    common = set.intersection(*several) if len(several) > 1 else set()
    return [
        " ".join(word for word in each if word not in common) or name for name, each in zip(names, words, strict=True)
    ]


def style(series: int) -> str:
    """Return the classes of a series: its color, and dashes if the colors have run out."""
    if series == BASELINE:
        return "s0"
    dashes = series // COLORS
    return f"s{series % COLORS + 1}" + (f" d{min(dashes, 3)}" if dashes else "")


def marker(series: int, x: float, y: float, size: float = 4.5) -> str:
    """Return the mark of a series. Its shape differs where colors are the same, and for people who do not see them."""
    shape = 0 if series == BASELINE else (series + series // COLORS) % SHAPES
    name = f"mark {style(series)}" + (" hollow" if series == BASELINE else "")
    if shape == 0:
        return tag("circle", cx=x, cy=y, r=size, class_=name)
    corners: dict[int, list[tuple[float, float]]] = {
        1: [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        2: [(0, -1.3), (1.2, 1), (-1.2, 1)],
        3: [(0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)],
    }
    return tag(
        "polygon", points=" ".join(f"{x + size * a:.1f},{y + size * b:.1f}" for a, b in corners[shape]), class_=name
    )


def style_sheet(name: str) -> str:
    """Return a style sheet of `templates/`."""
    return (files(__package__) / "templates" / name).read_text(encoding="utf-8")


def picture(charts: list[Chart], across: int = 2) -> str:
    """Return several charts as one `data:` URI of an SVG image in the colors of light mode, for markdown."""
    gap, head, marks, top = 16.0, 22.0, [], 0.0
    for start in range(0, len(charts), across):
        line = charts[start : start + across]
        for place, chart in enumerate(line):
            left = place * (WIDTH + gap)
            marks.append(text(left, top + 14, fitted(chart.title, WIDTH), class_="title"))
            marks.append(tag("svg", chart.marks, x=left, y=top + head, width=WIDTH, height=chart.height))
        top += head + gap + max(chart.height for chart in line)
    columns = min(across, len(charts))
    width = columns * WIDTH + (columns - 1) * gap
    light = palette().partition("@media")[0]
    made = tag(
        "svg",
        tag("style", light + style_sheet("charts.css")) + tag("rect", width="100%", height="100%", class_="page")
        + "".join(marks),
        xmlns="http://www.w3.org/2000/svg", viewBox=f"-8 -8 {width + 16:.0f} {top + 8:.0f}", width=width + 16,
        height=top + 8, class_="chart",
    )  # fmt: skip
    return "data:image/svg+xml;base64," + base64.b64encode(made.encode()).decode()
