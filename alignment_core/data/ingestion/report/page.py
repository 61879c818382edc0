"""Render the data report as a page: markdown for Prefect, HTML that opens offline, in the dark and on a phone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

import jinja2

from alignment_core.data.dataset.kinds import IN_WORDS
from alignment_core.data.ingestion.report.charts import data_charts
from alignment_core.data.ingestion.report.tables import Table, tables
from alignment_core.data.ingestion.report.used import used_line
from alignment_core.markdown import message, plain
from alignment_core.reporting.page import Cell, Fact, Figures, render
from alignment_core.reporting.svg import picture
from alignment_core.texts import percent

PACKAGE = "alignment_core.data.ingestion.report"
LONGER = 0.1
"""If chosen answers are longer by more than this, the report says what may come of it."""
RUN_CHARACTERS = 600
"""Longer runs of a sample are cut in the middle."""


def html_report(report: Mapping[str, Any], *, files: bool = True) -> str:
    """Return the report as one HTML file that loads nothing.

    Args:
        report: from `make_report`.
        files: whether the other files of the ingestion are beside it.
    """
    return render(
        PACKAGE, "report.html.jinja",
        title=", ".join(file["name"] for file in report["files"][:3]) + (" …" if len(report["files"]) > 3 else ""),
        kicker="Data report",
        files=files,
        used=used_line(report["used"]),
        warnings=report["warnings"],
        facts=list(facts(report)),
        charts=data_charts(report),
        tables=[(table.head[0], _figures(table), table.note) for table in tables(report, files=files)],
        samples=[
            {**sample, "runs": [{**run, "text": short(run["text"])} for run in sample["runs"]]}
            for sample in report["samples"]
        ],
    )  # fmt: skip


def facts(report: Mapping[str, Any]) -> Iterator[Fact]:
    """Yield how many rows of each kind a run can train on, and what is striking about them."""
    used = report["used"]
    share = f"{percent(used['records'] / used['of'])} are used" if used["of"] else ""
    yield Fact("records", f"{used['of']:,}", share)
    held_out = report["rows"]["held_out"]
    for kind, count in report["rows"]["train"].items():
        if count or held_out[kind]:
            yield Fact(f"{IN_WORDS[kind]} to train on", f"{count:,}", f"{held_out[kind]:,} held out")
    lengths = report["lengths"]
    if {"chosen", "rejected"} <= set(lengths) and lengths["rejected"]["median"]:
        ratio = lengths["chosen"]["median"] / lengths["rejected"]["median"] - 1
        meaning = "a model may learn this alone" if ratio > LONGER else "of the medians"
        yield Fact("chosen against rejected length", percent(ratio, sign="+"), meaning)


def _figures(table: Table) -> Figures:
    numeric = [isinstance(cell, int) for cell in table.rows[0]]
    rows: list[list[Cell]] = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in table.rows]
    return Figures(table.head[0], table.head, rows, numeric)


def markdown_report(report: Mapping[str, Any]) -> str:
    """Return the report of `make_report` as markdown for Prefect, with its charts as one picture."""
    text = (files(__package__) / "templates" / "report.md.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"short": short, "plain": plain, "message": message}
    drawn = data_charts(report)
    return environment.from_string(text).render(
        report=report, used=used_line(report["used"]), tables=tables(report), picture=picture(drawn) if drawn else None
    )


def short(text: str) -> str:
    """Return the text, cut in the middle if it is long."""
    half = RUN_CHARACTERS // 2
    return (
        text if len(text) <= RUN_CHARACTERS else f"{text[:half]} […{len(text) - 2 * half} characters…] {text[-half:]}"
    )
