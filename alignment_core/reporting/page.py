"""The page around the charts and tables of a report: one file that loads nothing and runs no script."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from alignment_core.palette import palette
from alignment_core.reporting.svg import UNSAFE, marker, style, style_sheet, tag

BACKTICKS = re.compile(r"(?<!`)`([^`]+)`(?!`)")
CUT = 300
"""Longer texts in a cell of a table are cut."""

Cell = str | tuple[str, str]


@dataclass(frozen=True)
class Figures:
    """A table of numbers.

    Attributes:
        caption: what the table shows.
        head: the headings.
        rows: the cells, each a text, or a value and its interval. The first one of a row is its heading.
        numbers: whether the cells of each column are numbers, which are aligned to the right; `True`: all except the
            first column.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: bool | Sequence[bool] = True


@dataclass(frozen=True)
class Fact:
    """A number worth large print: its name, the value, what it means, and whether it is `good`, `bad` or neither."""

    name: str
    value: str
    note: str = ""
    kind: str = ""


def render(package: str, template: str, **shown: Any) -> str:
    """Return a page.

    Args:
        package: the package whose folder `templates` has the template.
        template: name of a template that extends `page.html.jinja`.
        shown: what it shows. Texts are escaped.
    """
    loaders = [jinja2.PackageLoader(name) for name in (package, "alignment_core.reporting")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
    )
    sheets = palette() + style_sheet("charts.css") + style_sheet("page.css")
    environment.globals |= {"style_sheets": sheets, "swatch": swatch}
    environment.filters["coded"] = coded
    return environment.get_template(template).render(shown)


def _printable(value: Any) -> Any:
    """Replace characters that HTML does not allow, in texts that are not markup."""
    return UNSAFE.sub("\N{REPLACEMENT CHARACTER}", value) if type(value) is str else value


def swatch(series: int) -> str:
    """Return the color and the shape of a series as a small drawing."""
    line = tag("line", x1=0, x2=24, y1=8, y2=8, class_=f"line {style(series)}")
    return tag("svg", line + marker(series, 12, 8), viewBox="0 0 24 16", aria_hidden="true", class_="swatch")


def coded(message: str) -> Markup:
    """Return a message of this program, whose names between single backticks are shown as code."""
    parts = BACKTICKS.split(UNSAFE.sub("\N{REPLACEMENT CHARACTER}", message))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else part for place, part in enumerate(parts)
    )


def cut(text: object, limit: int = CUT) -> str:
    """Return the text, cut if it is long."""
    shown = str(text)
    return shown if len(shown) <= limit else f"{shown[:limit]}…"
