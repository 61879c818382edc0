"""The data report as tables, in the order in which a person needs them. All pages and the terminal show the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from alignment_core.data.dataset.kinds import IN_WORDS

LABELS = {
    "demonstrations given": "demonstrations in the sources",
    "demonstrations from chosen sides and desirable responses": "demonstrations from chosen and desirable responses",
    "preferences given": "preference pairs in the sources",
    "preferences from opposite labels on one prompt": "preference pairs from opposite labels on one prompt",
    "feedback given": "labelled responses in the sources",
    "feedback from the two sides of pairs": "labelled responses from preference pairs",
    "prompts given": "prompts in the sources",
    "prompts of other records": "prompts of other records",
    "superseded": "votes replaced by a later vote of the same rater",
    "contradicting": "pairs and responses with contradicting votes",
    "outvoted": "votes against the majority, dropped",
    "tied": "votes in a tie, dropped",
    "as_text": "kept as <think> text",
    "left_out": "left out",
    "as often chosen as rejected": "responses chosen as often as rejected, not labelled",
}
"""How the report calls the keys of `conversions`, `votes` and `rendering`."""
LEFT_OUT = {
    "turn_without_its_thought": "whose thought the chat template drops",
    "turn_without_its_text": "whose text the chat template drops",
    "turn_after_a_dropped_thought": "after an answer whose thought the chat template shows only in a last one",
    "turn_not_rendered": "that the chat template does not show",
    "turn_interrupted": "that the chat template mixes with others",
    "turn_not_found": "that cannot be found in what the chat template writes",
}
"""How the report calls the reasons why an assistant turn is no target."""
QUARANTINE_FILE = "The quarantined rows are in quarantine.jsonl. Fix them and use the file as a source."
NO_FILE = "To get the quarantined rows as a file, to fix them: align data check --out FOLDER."
CELL = 300
"""Longer texts in a cell are cut."""

Cell = str | int


@dataclass(frozen=True)
class Table:
    """A table of the report. Numbers are aligned to the right."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def tables(report: Mapping[str, Any], *, files: bool = True) -> list[Table]:
    """Return the tables of a report that have rows. If nothing can be used, those that say why.

    Args:
        report: from `make_report`.
        files: whether the other files of an ingestion are beside the report, such as the quarantined rows.
    """
    why = (_not_used(report, files=files), _files(report))
    used = (_rows(report), _origins(report), _lengths(report), _details(report))
    made = (*why, *used) if report["used"]["records"] else why
    return [table for table in made if table.rows]


def _not_used(report: Mapping[str, Any], *, files: bool) -> Table:
    """What is left out, why, and a few examples."""

    def bad(name: str, reasons: Mapping[str, int]) -> Iterator[tuple[Cell, ...]]:
        for reason, count in reasons.items():
            examples = [f"{item['origin']}: {item['detail']}" for item in report["examples"].get(reason, ())]
            yield f"{name}: {reason}", count, _cut("; ".join(examples))

    shown = report["ignored_examples"]
    unread = {name: count for name, count in report["quarantined"].items() if name not in report["unrendered"]}
    duplicates = {f"{name} duplicates": count for name, count in report["duplicates"].items() if count}
    rows = (
        *((f"column not read: {name}", count, shown[name]) for name, count in report["ignored"].items()),
        *bad("cannot be rendered", report["unrendered"]),
        *bad("quarantined", unread),
        *((f"dropped: {name}", count, "") for name, count in report["dropped"].items()),
        *((LABELS.get(name, name), count, "") for name, count in report["votes"].items() if count),
        *((name, count, "") for name, count in duplicates.items()),
    )
    note = QUARANTINE_FILE if files else NO_FILE
    return Table(("left out", "count", "examples"), rows, note if report["quarantined"] else "")


def _rows(report: Mapping[str, Any]) -> Table:
    kinds = report["rows"]["train"].items()
    return Table(
        ("rows", "training", "held out"),
        tuple((IN_WORDS[kind], count, report["rows"]["held_out"][kind]) for kind, count in kinds),
    )


def _files(report: Mapping[str, Any]) -> Table:
    rows = (
        (file["name"], file["format"], f"{file['rows']} (cached)" if file["reused"] else file["rows"], file["why"])
        for file in sorted(report["files"], key=lambda file: str(file["name"]))
    )
    return Table(("file", "format", "rows read", "reason for the format"), tuple(rows))


def _origins(report: Mapping[str, Any]) -> Table:
    found = report["conversions"]["train"].items()
    rows = tuple((LABELS.get(name, name), count) for name, count in found if count)
    return Table(("origin of the training rows", "rows"), rows)


def _lengths(report: Mapping[str, Any]) -> Table:
    rows = (
        (name, round(spread["p5"]), round(spread["median"]), round(spread["p95"]), spread["max"])
        for name, spread in report["lengths"].items()
    )
    return Table((f"length in {report['unit']}", "5 %", "median", "95 %", "longest"), tuple(rows))


def _details(report: Mapping[str, Any]) -> Table:
    return Table(("balance, lengths and targets", "count"), tuple(_detail_rows(report)))


def _detail_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, Cell]]:
    balance, fit, targets, rendering = (report[name] for name in ("balance", "fit", "targets", "rendering"))
    unit = report["unit"]
    yield "desirable responses", balance["desirable"]
    yield "undesirable responses", balance["undesirable"]
    if weights := balance["suggested"]:
        yield "KTO weights λ_D, λ_U that balance the classes", f"{weights['lambda_D']}, {weights['lambda_U']}"
    yield "prompts in both splits", report["overlap"]["prompts"]
    yield "conversations in both splits", report["overlap"]["conversations"]
    yield "maximum length", f"{fit['max_length']} {unit}" if fit["max_length"] else "none"
    if fit["max_length"]:
        yield "records cut to fit", fit["truncated"]
        yield "records left out because they do not fit", fit["too_long"]
    yield "records rewritten for the chat template", fit["rewritten_for_template"]
    for reason, count in rendering["left_out"].items():
        yield f"assistant turns {LEFT_OUT[reason]}, not learned", count
    for place, count in rendering["thoughts"].items():
        yield f"thoughts without a place in the chat template, {LABELS[place]}", count
    if rendering["date"]:
        yield "date that the chat template prints, on every day", rendering["date"]
    yield f"{unit} in demonstrations", targets["tokens"]
    share = f" ({100 - 100 * targets['masked_share']:.0f} %)" if targets["tokens"] else ""
    yield f"{unit} in demonstrations that are targets", f"{targets['targets']}{share}"


def _cut(text: str) -> str:
    return text if len(text) <= CELL else f"{text[:CELL]}…"
