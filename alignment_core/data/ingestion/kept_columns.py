"""The columns that a source keeps for evaluators: from its rows to the facts of its records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from alignment_core.data.sources.readers import RawRow
from alignment_core.records.format import Outcome, Quarantined, Reading


class Kept:
    """Remembers the kept columns of the rows that were read, and adds them to the records that come from these rows.

    Args:
        columns: `data.sources[].keep`.
        joins: whether the format joins rows. Otherwise the records of a row come before the next row, so that only the
            columns of one row are in memory.

    Attributes:
        found: number of rows that have each of them.
        columns: every column of the rows, if there is anything to keep.
    """

    def __init__(self, columns: Sequence[str], *, joins: bool) -> None:
        self._keep, self._joins = columns, joins
        self._of_row: dict[str, Mapping[str, Any]] = {}
        self.found: Counter[str] = Counter()
        self.columns: set[str] = set()

    def note(self, row: RawRow) -> None:
        """Remember the kept columns of a row."""
        if not self._keep or not isinstance(row.value, Mapping):
            return
        self.columns.update(map(str, row.value))
        facts = {name: row.value[name] for name in self._keep if row.value.get(name) is not None}
        self.found.update(facts.keys())
        if not self._joins:
            self._of_row.clear()
        if facts:
            self._of_row[row.origin] = facts

    def attach(self, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
        """Add facts to the records. A record whose facts are no JSON becomes `Quarantined`."""
        for outcome in outcomes:
            if not isinstance(outcome, Reading) or outcome.record.origin not in self._of_row:
                yield outcome
                continue
            facts = self._of_row[outcome.record.origin]
            try:
                plain = json.loads(to_json(facts))
            except (TypeError, ValueError, RecursionError) as error:
                detail = f"a column in data.sources[].keep cannot be kept: {error}"
                yield Quarantined(outcome.record.origin, "unusable_fact", detail, dict(facts))
                continue
            yield replace(outcome, record=replace(outcome.record, facts=plain))


def to_json(facts: Mapping[str, Any]) -> str:
    """Return facts as JSON. Dates and decimal numbers, which tables have, become text.

    Raises:
        TypeError, ValueError: a value is no JSON: bytes, NaN or infinity.
    """
    return json.dumps(facts, default=_text, allow_nan=False, sort_keys=True)


def _text(value: Any) -> str:
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Decimal | UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not a number, text, list or object")
