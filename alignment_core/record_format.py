"""What a record format is: how it is recognised, and how its rows become canonical records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from alignment_core.config import SourceConfig
from alignment_core.records import RawRow, Record

Fields = Mapping[str, Any]


class BadRow(Exception):
    """A row that cannot be used: it is quarantined under `reason`, with `detail` for the person who mends it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Reading:
    """A record as somebody gave it.

    Attributes:
        record: the canonical record.
        voter: who judged, where the format says so; of one voter's judgements on the same thing the last counts.
        when: order of a voter's judgements (seconds or a counter).
    """

    record: Record
    voter: str | None = None
    when: float = 0.0


@dataclass(frozen=True, slots=True)
class Dropped:
    """A judgement that says nothing (neutral, pending, a tie): counted under `reason`, and no fault of the row."""

    reason: str
    origin: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A row that could not be used, with its reason and as much of it as mends it."""

    origin: str
    reason: str
    detail: str
    raw: Any


Outcome = Reading | Dropped | Quarantined


class RecordFormat:
    """One shape of rows, made without arguments.

    A stateless format defines `matches` and `read`; one that joins rows overrides `records`.
    """

    name: ClassVar[str]
    shape: ClassVar[str]
    """How a row looks, for the report and the documentation."""
    whole_source: ClassVar[bool] = False
    """Rows of one file need rows of another: all of a source's files are read as one."""

    def matches(self, row: Fields) -> bool:
        """Whether a row looks like this format; true for no other row than its own."""
        raise NotImplementedError

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        """What one row says.

        Raises:
            BadRow: the row cannot be used.
        """
        raise NotImplementedError

    def records(self, rows: Iterable[RawRow], source: SourceConfig) -> Iterator[Outcome]:
        """What a file's rows say, in order; a row that cannot be used is among the outcomes."""
        for row in rows:
            yield from self.outcomes(row, source)

    def outcomes(self, row: RawRow, source: SourceConfig) -> list[Outcome]:
        """`read` of one row, its faults as outcomes."""
        try:
            if not isinstance(row.value, Mapping):
                raise BadRow("not_an_object", f"{type(row.value).__name__} where an object of columns was expected")
            if not self.matches(row.value):
                raise BadRow("other_format", f"not {self.name}: {self.shape}; columns {', '.join(map(str, row.value))}")
            return list(self.read(row.value, row.origin, source))
        except BadRow as bad:
            return [Quarantined(row.origin, bad.reason, bad.detail, row.value)]
        except Exception as error:
            # The row has the format's columns, and inside them a shape that nobody has seen yet.
            return [Quarantined(row.origin, "unexpected_shape", f"{type(error).__name__}: {error}", row.value)]
