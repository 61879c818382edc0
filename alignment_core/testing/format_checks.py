"""Checks of a record format: which rows it recognizes, what it reads of them, and what bad rows do."""

from __future__ import annotations

import copy
import inspect
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from alignment_core.config import SourceConfig
from alignment_core.data.ingestion.check import check as check_data
from alignment_core.data.sources.reading import outcomes_of
from alignment_core.plugin_api import Dropped, Quarantined, RawRow, Reading, RecordFormat, Unread
from alignment_core.plugin_calls import calling
from alignment_core.records.format import Outcome
from alignment_core.temporary import temporary_folder
from alignment_core.testing.limits import overhearing
from alignment_core.testing.report import Doubt, Fault, Report
from alignment_core.testing.settings_checks import check_declaration, check_import

FILE = "rows.jsonl"
SOURCE = SourceConfig(path=FILE)
OTHERS: tuple[Mapping[str, Any], ...] = (
    {},
    {"text": None},
    {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"},
    {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello"}]},
    {"prompt": "Hi", "completion": "Hello", "label": True},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {"instruction": "Greet", "input": "", "output": "Hello"},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away"},
    {"data": {"rating": 1}, "meta": {"tags": []}, "snapshot": {"chat": {}}},
    {"id": 3, "messages": "text", "rating": "up", "score": float("nan")},
)
"""Rows of other formats, and rows that no format reads."""


def check_rows(record_format: type[RecordFormat], rows: Sequence[Mapping[str, Any]] | None) -> Report:
    """Run all checks on a record format with these rows, or those of its `example`."""
    report = Report(record_format.__name__)
    with overhearing() as heard:
        check_declaration(report, record_format, RecordFormat)
        if not report.passed:
            return report
        with report.checking("described"):
            if inspect.getdoc(record_format) == inspect.getdoc(RecordFormat):
                raise Fault("the class has no docstring. It describes the format to users")
        check_import(report, record_format)
        made, rows = record_format(), list(record_format.example if rows is None else rows)
        with report.checking("recognizes its rows") as shown:
            shown.append(_recognizes(made, rows))
        with report.checking("leaves other rows"):
            _leaves_others(made)
        if rows:
            _check_reading(report, made, rows)
        report.add_output(heard)
    return report


def _check_reading(report: Report, made: RecordFormat, rows: Sequence[Mapping[str, Any]]) -> None:
    with report.checking("reads its rows") as shown:
        shown.append(_reads(made, rows))
    with report.checking("reads every column"):
        _reads_columns(made, rows)
    with report.checking("repeats"):
        if _outcomes(made, rows) != _outcomes(type(made)(), rows):
            raise Fault("the same rows give other records when they are read again")
        given = copy.deepcopy(rows)
        list(_read(made, given))
        if given != rows:
            raise Fault("it changes the rows that it reads")
    with report.checking("bad rows") as shown:
        shown.append(_bad_rows(made, rows))
    with report.checking("as in a run") as shown:
        shown.append(_ingests(made, rows))


def _recognizes(made: RecordFormat, rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        raise Fault(
            "there are no rows to read. Give the class some: `example: ClassVar = ({…}, {…})`, or call "
            "`check_format(Mine, rows)`"
        )
    for number, row in enumerate(rows, start=1):
        if not _matches(made, row, f"row {number} of the example"):
            raise Fault(f"`matches` is false for row {number} of the example, with the columns {', '.join(row)}")
    return f"{len(rows)} rows"


def _leaves_others(made: RecordFormat) -> None:
    for row in OTHERS:
        if _matches(made, row, f"a row of another format, {row}"):
            raise Fault(f"`matches` is true for a row of another format: {row}. Ask for columns that only yours has")


def _matches(made: RecordFormat, row: Mapping[str, Any], place: str) -> bool:
    with calling(made, "matches", place):
        answer: object = made.matches(row)
    if not isinstance(answer, bool):
        raise Fault(f"`matches` returns {type(answer).__name__}, not bool, for {place}")
    return answer


def _outcomes(made: RecordFormat, rows: Iterable[Any]) -> list[Outcome]:
    return list(_read(made, copy.deepcopy(list(rows))))


def _read(made: RecordFormat, rows: Iterable[Any]) -> Iterator[Outcome]:
    raw = (RawRow(row, f"{FILE}:{number}") for number, row in enumerate(rows, start=1))
    return outcomes_of(made, raw, SOURCE, [FILE])


def _reads(made: RecordFormat, rows: Sequence[Mapping[str, Any]]) -> str:
    found = _outcomes(made, rows)
    for outcome in found:
        if isinstance(outcome, Quarantined):
            raise Fault(f"{outcome.origin} is quarantined: {outcome.reason}, {outcome.detail}")
    counts = Counter(type(outcome.record).__name__ for outcome in found if isinstance(outcome, Reading))
    if not counts:
        raise Fault("no record comes of the example. `read` yields `Reading(record)` for each")
    dropped = sum(isinstance(outcome, Dropped) for outcome in found)
    return ", ".join([f"{count} {kind}" for kind, count in counts.items()] + [f"{dropped} dropped"] * bool(dropped))


def _reads_columns(made: RecordFormat, rows: Sequence[Mapping[str, Any]]) -> None:
    left = {name for outcome in _outcomes(made, rows) if isinstance(outcome, Unread) for name in outcome.columns}
    if left:
        raise Doubt(f"not read: {', '.join(sorted(left))}. Name columns that change nothing in `unused`")


def _bad_rows(made: RecordFormat, rows: Sequence[Mapping[str, Any]]) -> str:
    """Check that a row that lacks a column, or has another value in it, does not end the reading."""
    tried = 0
    for broken in _broken(rows[0]):
        tried += 1
        _outcomes(made, [broken, *rows[1:]])
    return f"{tried} rows"


def _broken(row: Mapping[str, Any]) -> Iterator[Any]:
    for name in row:
        yield {other: value for other, value in row.items() if other != name}
        others: tuple[Any, ...] = (None, 7, "a word", [], {})
        for value in others:
            yield {**row, name: value}
    yield "a row that is not an object"


def _ingests(made: RecordFormat, rows: Sequence[Mapping[str, Any]]) -> str:
    """Read a file of the rows as `align data check` does, which renders the records."""
    with temporary_folder("check") as folder:
        path = folder / FILE
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        report = check_data([str(path)], plugged={made: {}})
    (file,) = report["files"]
    if file["format"] != made.name:
        raise Fault(f"the rows are read in the format {file['format']}: {file['why']}")
    if report["quarantined"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in report["quarantined"].items())
        raise Fault(f"records cannot be used: {reasons}. See `align data check` on a file of such rows")
    return str(file["why"])
