"""The interface of a record format: how it is recognized, and how its rows become canonical records."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from alignment_core.config import SourceConfig
from alignment_core.records import (
    Conversation,
    Demonstration,
    LabelledResponse,
    PreferencePair,
    Prompt,
    RawRow,
    Record,
)
from alignment_core.records.columns import HARMLESS, OTHER, TrackedRow, is_missing, meaning, peek, what_is_lost
from alignment_core.records.raters import rater_and_time
from alignment_core.records.tools import TOOL_COLUMNS, BadTools, tool_definitions

Fields = Mapping[str, Any]


class BadRow(Exception):
    """Raised for a row that cannot be used. It is quarantined under `reason`. `detail` says what to fix."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Reading:
    """A record, with its voter and time if the format contains them.

    Attributes:
        record: the canonical record.
        voter: who judged. Of one voter's judgments on the same thing, only the last counts. None: unknown.
        when: orders a voter's judgments (seconds or a counter).
        conversation: identifies the conversation if records with other prompts come from it, too. They are then held
            out together. None: the prompt is the conversation.
    """

    record: Record
    voter: str | None = None
    when: float = 0.0
    conversation: str | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """A judgment without a verdict (neutral, pending, a tie). It is counted under `reason` and is not an error."""

    reason: str
    origin: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A row that could not be used, with the reason and the raw data that is needed to fix it."""

    origin: str
    reason: str
    detail: str
    raw: Any


@dataclass(frozen=True, slots=True)
class Unread:
    """Columns of a row, or keys of its turns (`column[].key`), that its format did not read, with their values."""

    origin: str
    columns: Mapping[str, Any]


Outcome = Reading | Dropped | Quarantined | Unread

THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")
"""Keys of a turn's thought."""
MASK_KEYS = ("weight", "train", "training", "trainable", "loss")
"""Keys that say whether a turn is learned (1, true) or only context (0, false)."""
PREFIX_KEYS = ("prefix", "prefill", "partial")
"""Keys that say that a turn is only the start of an answer."""
TURN_KEYS = frozenset(
    (
        *("role", "from", "content", "value", "text", "tool_calls", "function_call", "tool_call_id", "name", "tools"),
        *THOUGHT_KEYS,
        *MASK_KEYS,
        *PREFIX_KEYS,
    )
)
"""Keys of a turn that are read in every format."""


class RecordFormat:
    """One format of rows. The class is instantiated without arguments.

    A stateless format defines `matches` and `read`. A format that joins rows overrides `records`.
    """

    name: ClassVar[str]
    shape: ClassVar[str]
    """What a row looks like, for the report and the documentation."""
    whole_source: ClassVar[bool] = False
    """True if rows of one file need rows of another. All files of a source are then read as one."""
    unused: ClassVar[frozenset[str]] = frozenset()
    """Columns that change nothing in rows of this format, although their names may suggest that they do."""
    turn_keys: ClassVar[frozenset[str]] = TURN_KEYS
    """Keys of a turn that the format reads."""
    example: ClassVar[Sequence[Fields]] = ()
    """Rows in this format, as in one file, with which it is checked and described."""

    def matches(self, row: Fields) -> bool:
        """Return whether a row has this format. It must be false for the rows of any other format."""
        raise NotImplementedError

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        """Return the outcomes of one row: records, or `Dropped` for a judgment without a verdict.

        Raises:
            BadRow: the row cannot be used.
        """
        raise NotImplementedError

    def records(self, rows: Iterable[RawRow], source: SourceConfig) -> Iterator[Outcome]:
        """Convert the rows of a file, in order. A row that cannot be used is yielded as `Quarantined`."""
        for row in rows:
            yield from self.outcomes(row, source)

    def outcomes(self, row: RawRow, source: SourceConfig) -> list[Outcome]:
        """Call `read` on one row. Errors are returned as `Quarantined`.

        A row with a column that `read` leaves out although it may change what the row means is quarantined. Other
        columns that are left out are returned as `Unread`.
        """
        try:
            if not isinstance(row.value, Mapping):
                raise BadRow("not_an_object", f"got {type(row.value).__name__}, expected an object of columns")
            if not self.matches(row.value):
                columns = ", ".join(map(str, row.value))
                raise BadRow("other_format", f"got columns [{columns}], expected {self.name}: {self.shape}")
            fields = TrackedRow(row.value)
            found = with_rater(self.read_with_tools(fields, row.origin, source), fields)
            return [*self.unread(fields, found, row.origin, source), *found]
        except BadRow as bad:
            return [Quarantined(row.origin, bad.reason, bad.detail, row.value)]
        except Exception as error:
            # The row has the format's columns, but `read` does not know the shape of their values.
            return [Quarantined(row.origin, "unexpected_shape", f"{type(error).__name__}: {error}", row.value)]

    def read_with_tools(self, row: Fields, origin: str, source: SourceConfig) -> list[Outcome]:
        """Return what `read` returns, with the tools that the row offers in a column.

        Raises:
            BadRow: as for `read`, or the column does not define tools.
        """
        return with_tools(self.read(row, origin, source), tools_of(row))

    def unread(self, fields: TrackedRow, found: Iterable[Outcome], origin: str, source: SourceConfig) -> list[Outcome]:
        """Return what to report about the columns that `read` left out, if the row became a record.

        Raises:
            BadRow: one of them may change what the row means, and the user named neither the format nor the columns.
        """
        kept = set(source.keep) - fields.read  # what a format leaves out of a column that it reads is still reported
        left = [
            (name, value)
            for name, value in fields.unread(self.turn_keys)
            if name not in self.unused and not is_kept(name, kept)
        ]
        records = [outcome.record for outcome in found if isinstance(outcome, Reading)] if left else []
        if not records:
            return []
        texts = [str(turn.get("content") or "") for record in records for turn in _turns(record)]
        judged = any(isinstance(record, PreferencePair | LabelledResponse) for record in records)
        lost = {name: what_is_lost(name, value, texts, judged=judged) for name, value in left}
        changing = {name: what for name, what in lost.items() if what not in (HARMLESS, OTHER)}
        if changing and source.format is None and not source.columns:
            raise UnreadColumn(changing)
        counted = {name: value for name, value in left if lost[name] != HARMLESS}
        return [Unread(origin, counted)] if counted else []


def tools_of(row: Fields) -> list[dict[str, Any]]:
    """Return the tools that a row offers in a column of its own or beside the messages of its column `input`.

    Raises:
        BadRow: the column does not define tools.
    """
    asked = peek(row, "input")
    for place, fields in (("", row), ("input.", asked if isinstance(asked, Mapping) else {})):
        for name in TOOL_COLUMNS:
            if name in fields:
                try:
                    found = tool_definitions(fields[name])
                except BadTools as bad:
                    raise BadRow("bad_tools", f"{place}{name}: {bad}") from None
                if found:
                    return found
    return []


def with_tools(outcomes: Iterable[Outcome], tools: list[dict[str, Any]]) -> list[Outcome]:
    """Return outcomes whose records offer tools."""
    return [
        replace(outcome, record=_with_tools(outcome.record, tools))
        if tools and isinstance(outcome, Reading)
        else outcome
        for outcome in outcomes
    ]


def _with_tools(record: Record, tools: list[dict[str, Any]]) -> Record:
    match record:
        case Demonstration(messages) | Prompt(messages):
            return replace(record, messages=offering(messages, tools))
        case PreferencePair(prompt, chosen, rejected) if not prompt:
            return replace(record, chosen=offering(chosen, tools), rejected=offering(rejected, tools))
        case LabelledResponse(prompt, response) if not prompt:
            return replace(record, response=offering(response, tools))
        case _:
            return replace(record, prompt=offering(record.prompt, tools))


def offering(messages: Conversation, tools: list[dict[str, Any]]) -> Conversation:
    """Return a conversation with definitions of tools on its first turn, where the renderer looks for them.

    Tools that it has there already are kept.
    """
    return ({**messages[0], "tools": messages[0].get("tools") or tools}, *messages[1:]) if tools else messages


def with_rater(outcomes: Sequence[Outcome], row: Fields) -> list[Outcome]:
    """Return outcomes whose judgments have the rater and the time of the row, where the format named no rater."""
    return [_with_rater(outcome, row) if isinstance(outcome, Reading) else outcome for outcome in outcomes]


def _with_rater(reading: Reading, row: Fields) -> Reading:
    if reading.voter is not None or not isinstance(reading.record, PreferencePair | LabelledResponse):
        return reading
    voter, when = rater_and_time(row)
    return replace(reading, voter=voter, when=reading.when or when)


def unread_besides(known: Collection[str], row: RawRow) -> Iterator[Unread]:
    """Yield the columns of a row that are neither known to its format nor harmless nor empty."""
    left = {str(name): value for name, value in row.value.items() if name not in known and not is_missing(value)}
    if counted := {name: value for name, value in left.items() if meaning(name) != HARMLESS}:
        yield Unread(row.origin, counted)


def is_kept(name: str, columns: Collection[str]) -> bool:
    """Return whether an unread column, or a key inside one (`column.key`), is in `columns`."""
    return name in columns or name.split(".")[0].removesuffix("[]") in columns


class UnreadColumn(BadRow):
    """Raised for a row with columns that its format leaves out, although they may change what the row means.

    Args:
        columns: what each of them may hold.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        named = ", ".join(f"`{name}` (maybe {what})" for name, what in columns.items())
        super().__init__("unread_column", f"not read: {named}. Map the columns with data.sources[].columns")
        self.columns = columns


def _turns(record: Record) -> Conversation:
    match record:
        case Demonstration(messages) | Prompt(messages):
            return messages
        case PreferencePair(prompt, chosen, rejected):
            return (*prompt, *chosen, *rejected)
        case LabelledResponse(prompt, response):
            return (*prompt, *response)
