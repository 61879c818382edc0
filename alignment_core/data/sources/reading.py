"""Read rows with a record format. What a format raises or yields wrongly is an error that names it and the row."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import get_args

from alignment_core.config import SourceConfig
from alignment_core.errors import PluginError
from alignment_core.plugin_api import RecordFormat
from alignment_core.plugin_calls import calling
from alignment_core.record_format import Outcome, Reading
from alignment_core.records import RawRow, Record

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
    last = ""

    def noted() -> Iterator[RawRow]:
        nonlocal last
        for row in rows:
            last = row.origin
            yield row

    with calling(format_, method, lambda: last):
        made: object = format_.records(noted(), source)
        if not isinstance(made, Iterable):
            raise PluginError("it yields no outcomes", got=type(made).__name__, expected="a generator of outcomes")
        for outcome in made:
            _check(outcome, files)
            yield outcome


def _check(outcome: object, files: Collection[str]) -> None:
    if not isinstance(outcome, get_args(Outcome)):
        raise PluginError(
            "it yields something that is not an outcome",
            got=type(outcome).__name__,
            expected="Reading(record), Dropped, Quarantined or Unread",
        )
    if not isinstance(outcome, Reading):
        return
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


def _is_message(turn: object) -> bool:
    """Whether it has a role and a text. A turn that only calls a tool has none."""
    return (
        isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str | None)
    )
