"""`columns:` in the settings: any table, seen as the standard columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from alignment_core.config import SourceConfig
from alignment_core.data.formats.standard import Demonstrations, Labelled, Pairs, Prompts, Rated
from alignment_core.errors import DataError
from alignment_core.record_format import BadRow, Fields, Outcome, RecordFormat

OURS = (
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "label",
    "rating",
    "messages",
    "text",
    "system",
    "margin",
    "score_chosen",
    "score_rejected",
)


class ColumnMap(RecordFormat):
    """Renames a row's columns to ours and reads it as the standard format that these make.

    Args:
        columns: our name to the file's.
        rows: the first rows of the file.
        file: its name, for errors.

    Raises:
        DataError: a name that is not ours, a column that is in none of the rows, or names that make no record.
    """

    name: ClassVar[str] = "columns"
    shape: ClassVar[str] = "the columns of the settings"

    def __init__(self, columns: Mapping[str, str], rows: Sequence[Fields], file: str) -> None:
        self.columns = dict(columns)
        found = sorted({str(key) for row in rows for key in row})
        where = f"data.sources[].columns for {file}"
        if unknown := [name for name in columns if name not in OURS]:
            raise DataError("these are not our columns", where=where, got=", ".join(unknown), expected=", ".join(OURS))
        missing = [name for name in columns.values() if name not in found]
        if missing and rows:
            raise DataError(
                "the file has no such columns",
                where=where,
                got=", ".join(missing),
                expected=f"some of {', '.join(found)}",
            )
        renamed = dict.fromkeys(columns)
        for candidate in (Pairs(), Labelled(), Rated(), Demonstrations(), Prompts()):
            if candidate.matches(renamed):
                self._format = candidate
                return
        raise DataError(
            "these columns make no record",
            where=where,
            got=", ".join(columns),
            expected="prompt and chosen and rejected, prompt and completion (and label or rating), or text",
        )

    def matches(self, row: Fields) -> bool:
        return True

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        missing = [name for name in self.columns.values() if name not in row]
        if missing:
            raise BadRow("missing_column", f"no {', '.join(missing)}; columns {', '.join(map(str, row))}")
        renamed = {ours: row[theirs] for ours, theirs in self.columns.items()}
        yield from self._format.read(renamed, origin, source)
