"""The colors of every HTML page that is served or written: one list of CSS variables, for light and for dark."""

from __future__ import annotations

from importlib.resources import files


def palette() -> str:
    """Return the CSS variables, to be put into the `<style>` of a page.

    The reader's system chooses between light and dark. Text in `--text`, `--muted`, `--accent`, `--good`, `--bad` and
    `--warn` has a contrast of 4.5 : 1 or more on `--page`, `--surface` and `--raised`, `--on-accent` has it on
    `--accent`, and `--edge` and `--series-1` to `--series-6` have 3 : 1, as WCAG 2.2 AA asks.
    """
    return (files(__package__) / "palette.css").read_text(encoding="utf-8")
