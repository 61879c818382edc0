"""The data report as a page: markdown for Prefect and the terminal, HTML that opens offline."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import jinja2

PAGES = {"markdown": "report.md.jinja", "html": "report.html.jinja"}
RUN_CHARACTERS = 600
"""A sample's longer runs are cut in the middle."""


def page(report: Mapping[str, Any], form: str, picture: bytes | None = None) -> str:
    """The report as `markdown` or `html`, with the picture (PNG) of the lengths in it as a data URI.

    Args:
        report: from `make_report`.
        form: key of `PAGES`.
        picture: from `draw_lengths`.
    """
    text = (files("alignment_core.data") / "templates" / PAGES[form]).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=form == "html", trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["short"] = _short
    image = None if picture is None else base64.b64encode(picture).decode()
    return environment.from_string(text).render(report=report, picture=image)


def draw_lengths(lengths: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Histograms of the lengths, a PNG of about 20 kB."""
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


def _short(text: str) -> str:
    half = RUN_CHARACTERS // 2
    return (
        text if len(text) <= RUN_CHARACTERS else f"{text[:half]} […{len(text) - 2 * half} characters…] {text[-half:]}"
    )
