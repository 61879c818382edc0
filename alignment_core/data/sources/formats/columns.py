"""The `columns` setting, which maps the columns of any table to the standard columns."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from alignment_core.config import SourceConfig
from alignment_core.data.sources.formats.standard import Demonstrations, Labelled, Pairs, Prompts, Rated
from alignment_core.errors import DataError
from alignment_core.records.columns import ANSWER, CONTEXT, JUDGEMENT, OTHER, TrackedRow, meaning
from alignment_core.records.format import BadRow, Fields, Outcome, RecordFormat, with_rater
from alignment_core.records.raters import RATERS

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
    "tools",
    "margin",
    "score_chosen",
    "score_rejected",
    "rater",
    "time",
)


def how_to_map(rows: Sequence[Fields]) -> str:
    """Say how to map the columns of rows in no known format: by their names if those tell, else by an example."""
    guess = _by_their_names(rows)
    mapped = guess or {"prompt": "COLUMN", "completion": "COLUMN"}
    options = " ".join(f"--column {shlex.quote(f'{ours}={theirs}')}" for ours, theirs in mapped.items())
    setting = ", ".join(f"{ours}: {theirs}" for ours, theirs in mapped.items())
    condition = (
        f"If the {', the '.join(f'{ours} is `{theirs}`' for ours, theirs in guess.items())}"
        if guess
        else "Say which are the prompt and the completion (or chosen and rejected), and the label or rating"
    )
    return f"{condition}: `{options}`, or in a config file `columns: {{{setting}}}` of the source"


def _by_their_names(rows: Sequence[Fields]) -> dict[str, str]:
    """Guess from names and content which columns are prompt, completion and judgment. Empty if they do not tell."""
    columns = list(dict.fromkeys(str(name) for row in rows for name in row))
    found: dict[str, list[str]] = {}
    for name in columns:
        found.setdefault(meaning(name), []).append(name)
    texts = [name for name in found.get(OTHER, ()) if all(isinstance(row.get(name), str) for row in rows)]
    asked, answered, judged = found.get(CONTEXT) or texts, found.get(ANSWER, ()), found.get(JUDGEMENT, ())
    if len(asked) != 1 or len(answered) != 1 or len(judged) > 1:
        return {}
    return {"prompt": asked[0], "completion": answered[0]} | {_kind_of(rows, name): name for name in judged}


def _kind_of(rows: Sequence[Fields], name: str) -> str:
    """Return `rating` for a column with numbers besides 0, 1 and -1, otherwise `label`."""
    for row in rows:
        try:
            if float(row.get(name, 0)) not in (0, 1, -1):
                return "rating"
        except (TypeError, ValueError):
            return "label"
    return "label"


class ColumnMap(RecordFormat):
    """Renames a row's columns to standard names and reads the row with the standard format that matches them.

    Args:
        columns: maps standard names to the file's columns.
        rows: first rows of the file.
        file: file name for errors.

    Raises:
        DataError: a name is not a standard name, a column is in none of the rows, or no format has these columns.
    """

    name: ClassVar[str] = "columns"
    shape: ClassVar[str] = "the columns in data.sources[].columns"

    def __init__(self, columns: Mapping[str, str], rows: Sequence[Fields], file: str) -> None:
        self.columns = dict(columns)
        found = sorted({str(key) for row in rows for key in row})
        where = f"data.sources[].columns for {file}"
        if unknown := [name for name in columns if name not in OURS]:
            raise DataError(
                "these are not standard columns", where=where, got=", ".join(unknown), expected=", ".join(OURS)
            )
        missing = [name for name in columns.values() if name not in found]
        if missing and rows:
            raise DataError(
                "the file has no such columns",
                where=where,
                got=", ".join(missing),
                expected=f"columns from {', '.join(found)}",
            )
        renamed = dict.fromkeys(columns)
        for candidate in (Pairs(), Labelled(), Rated(), Demonstrations(), Prompts()):
            if candidate.matches(renamed):
                self._format = candidate
                return
        raise DataError(
            "these columns do not form a record",
            where=where,
            got=", ".join(columns),
            expected="{prompt, chosen, rejected}, {prompt, completion} (optionally with label or rating) or {text}",
        )

    def matches(self, row: Fields) -> bool:
        return True

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        missing = [name for name in self.columns.values() if name not in row]
        if missing:
            raise BadRow("missing_column", f"no {', '.join(missing)} among the columns {', '.join(map(str, row))}")
        mapped = {ours: row[theirs] for ours, theirs in self.columns.items()}
        # Who judged, and when, needs no mapping under names that say it.
        renamed = TrackedRow({name: row[name] for name in (*RATERS, "time") if name in row} | mapped)
        yield from with_rater(self._format.read_with_tools(renamed, origin, source), renamed)
        if isinstance(row, TrackedRow):
            row.read -= {self.columns.get(name, name) for name in renamed if name not in renamed.read}

    def read_with_tools(self, row: Fields, origin: str, source: SourceConfig) -> list[Outcome]:
        """Return what `read` returns. Tools in a column that is not mapped are left out."""
        return list(self.read(row, origin, source))
