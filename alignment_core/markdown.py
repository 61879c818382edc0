"""Put texts of strangers into markdown: names of files and columns, warnings, responses.

Prefect's pages render markdown and the HTML in it, so that an unescaped file name could load a picture from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

SPECIAL = re.compile(r"[\\`*\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|^(?:#+|[-+>=])(?=\s|$)")
TAG = re.compile(r"<(?=[A-Za-z/!?])")
CODE = re.compile(r"((?<!`)`[^`]+`(?!`))")
ENTITY = re.compile(r"&(?=#?\w+;)")


class Markdown(str):
    """A text that is markdown already."""

    __slots__ = ()


def plain(text: object) -> Markdown:
    """Return markdown that shows the text as it is, in a paragraph, a list or a table. Line ends become spaces."""
    return Markdown(_escape(_line(text)))


def message(text: object) -> Markdown:
    """Return markdown for a message of this program, whose names between single backticks are shown as code."""
    parts = CODE.split(_line(text))
    return Markdown("".join(code(part[1:-1]) if place % 2 else _escape(part) for place, part in enumerate(parts)))


def unmarked(text: object) -> str:
    """Return a message of this program for a terminal: its names are not between backticks."""
    parts = CODE.split(str(text))
    return "".join(part[1:-1] if place % 2 else part for place, part in enumerate(parts))


def code(text: object) -> Markdown:
    """Return the text as code within a line, outside or inside a table."""
    line = _line(text).replace("|", "\\|")
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    space = " " if "`" in line else ""
    return Markdown(f"{fence}{space}{line}{space}{fence}")


def code_block(text: str) -> Markdown:
    """Return the text as a block of code, which no markup in the text can end. It needs an empty line before it."""
    return Markdown("\n".join(f"    {line}" for line in text.splitlines() or [""]))


def table(head: str, rows: Mapping[str, str]) -> Markdown:
    """Return names and values as a table. Both are shown as they are, except values that are `Markdown`."""
    lines = [
        f"| {plain(name)} | {text if isinstance(text, Markdown) else plain(text)} |" for name, text in rows.items()
    ]
    return Markdown("\n".join([f"| {head} | value |", "| --- | --- |", *lines]))


def _line(text: object) -> str:
    return " ".join(str(text).splitlines())


def _escape(line: str) -> str:
    return TAG.sub("&lt;", ENTITY.sub("&amp;", SPECIAL.sub(lambda found: f"\\{found.group()}", line)))
