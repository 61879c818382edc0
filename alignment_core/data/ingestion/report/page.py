"""Render the data report as a page: markdown for Prefect, HTML that opens offline, in the dark and on a phone."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import jinja2

from alignment_core.data.ingestion.report.charts import balance_chart, draw_lengths, length_charts
from alignment_core.data.ingestion.report.tables import tables
from alignment_core.data.ingestion.report.used import used_line
from alignment_core.markdown import message, plain

PAGES = {"markdown": "report.md.jinja", "html": "report.html.jinja"}
RUN_CHARACTERS = 600
"""Longer runs of a sample are cut in the middle."""


def render_report(report: Mapping[str, Any], form: str) -> str:
    """Return the report as `markdown` or `html`.

    Args:
        report: from `make_report`.
        form: key of `PAGES`.
    """
    text = (files(__package__) / "templates" / PAGES[form]).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=form == "html", trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"short": short, "plain": plain, "message": message}
    shown: dict[str, Any] = {"report": report, "used": used_line(report["used"]), "tables": tables(report)}
    if form == "html":
        balance = balance_chart(report["balance"])
        shown["charts"] = [*length_charts(report["lengths"], report["unit"]), *([balance] if balance else [])]
    else:
        shown["picture"] = base64.b64encode(draw_lengths(report["lengths"])).decode() if report["lengths"] else None
    return environment.from_string(text).render(shown)


def short(text: str) -> str:
    """Return the text, cut in the middle if it is long."""
    half = RUN_CHARACTERS // 2
    return (
        text if len(text) <= RUN_CHARACTERS else f"{text[:half]} […{len(text) - 2 * half} characters…] {text[-half:]}"
    )
