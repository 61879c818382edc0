"""Markdown tables."""

from __future__ import annotations


def cell(text: str) -> str:
    """A text for one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
