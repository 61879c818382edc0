"""Read rows with a record format. What a format raises or yields wrongly is an error that names it and the row."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import get_args

from alignment_core.config import SourceConfig
from alignment_core.errors import PluginError
from alignment_core.plugin_api import RecordFormat
from alignment_core.plugin_calls import calling
from alignment_core.records import RawRow, Record
from alignment_core.records.format import Outcome, Quarantined, Reading

CONVERSATIONS = ("messages", "prompt", "chosen", "rejected", "response")
"""Fields of records that are conversations."""


def outcomes_of(
    format_: RecordFormat, rows: Iterable[RawRow], source: SourceConfig, files: Collection[str]
) -> Iterator[Outcome]:
    """Yield what a format makes of the rows.

    Args:
        format_: the format.
        rows: the rows, in order.
        source: the source that they come from.
        files: the names of its files, which begin the origins of records.

    Raises:
        PluginError: the format raised, or yielded something that is not an outcome.
    """
    method = "read" if type(format_).records is RecordFormat.records else "records"
    last = RawRow(None, "")

    def noted() -> Iterator[RawRow]:
        nonlocal last
        for row in rows:
            last = row
            yield row

    with calling(format_, method, lambda: last.origin):
        made: object = format_.records(noted(), source)
        if not isinstance(made, Iterable):
            raise PluginError("it yields no outcomes", got=type(made).__name__, expected="a generator of outcomes")
        for outcome in made:
            wrong = _not_text(_checked(outcome, files))
            yield outcome if wrong is None else Quarantined(last.origin, "not_text", wrong, last.value)


def _checked(outcome: object, files: Collection[str]) -> Outcome:
    if not isinstance(outcome, get_args(Outcome)):
        raise PluginError(
            "it yields something that is not an outcome",
            got=type(outcome).__name__,
            expected="Reading(record), Dropped, Quarantined or Unread",
        )
    if not isinstance(outcome, Reading):
        return outcome  # type: ignore[no-any-return]  # mypy does not follow `get_args`
    record = outcome.record
    if not isinstance(record, get_args(Record)):
        raise PluginError(
            "it yields a reading without a record",
            got=type(record).__name__,
            expected=", ".join(kind.__name__ for kind in get_args(Record)),
        )
    for name in CONVERSATIONS:
        turns = getattr(record, name, ())
        if not isinstance(turns, tuple) or not all(map(_is_message, turns)):
            raise PluginError(
                f"`{name}` of a record is not a conversation",
                got=repr(turns)[:80],
                expected='a tuple of messages, such as ({"role": "user", "content": "Hi"},)',
            )
    if record.origin.rpartition(":")[0] not in files:
        raise PluginError(
            "the origin of a record is not that of a row",
            got=repr(record.origin),
            expected="the `origin` of the row that it was read from",
            do="Give it to the record: `Prompt(messages, origin=origin)`",
        )
    return outcome


def _not_text(outcome: Outcome) -> str | None:
    """Return which turn of a record has a content that is no text, as in the one row in a thousand. None: none has."""
    if isinstance(outcome, Reading):
        for name in CONVERSATIONS:
            for turn in getattr(outcome.record, name, ()):
                content = turn.get("content")
                if not isinstance(content, str | None):  # a turn that only calls a tool has none
                    return f"the content of a turn in `{name}` is {type(content).__name__}, expected text"
    return None


def _is_message(turn: object) -> bool:
    return isinstance(turn, Mapping) and isinstance(turn.get("role"), str)
