"""Parts that both pages are built from. Their look is in `style.css`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Literal

from nicegui import ui

from alignment_core.palette import palette

Kind = Literal["main", "edged", "plain", "stop"]


def style() -> str:
    """Return the style sheet of the pages."""
    return palette() + (files(__package__) / "style.css").read_text(encoding="utf-8")


def button(
    text: str = "",
    press: Callable[[], object] | None = None,
    *,
    icon: str | None = None,
    kind: Kind = "plain",
    label: str = "",
) -> ui.button:
    """Add a button.

    Args:
        text: what it says; empty for a round one with an icon.
        press: called when it is pressed.
        icon: name of its icon.
        kind: its look: the main one of its row, one with an edge, a plain one, or one that stops something.
        label: its name for screen readers, if it says nothing.
    """
    made = ui.button(text, on_click=press, icon=icon, color=None).classes(f"button {kind}")
    made.props("unelevated no-caps" if text else "unelevated round dense")
    if label:
        made.props(f'aria-label="{label}"').tooltip(label)
    return made


def title(text: str) -> ui.label:
    """Add the heading of the page."""
    return ui.label(text).classes("title").props('role=heading aria-level="1"')
