"""The built-in record formats, and the detection of the format of a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from alignment_core.config import SourceConfig
from alignment_core.data.sources.formats.annotation import Argilla, LabelStudio
from alignment_core.data.sources.formats.chat_apps import Gradio, OpenWebUI, RatedTurns
from alignment_core.data.sources.formats.chatgpt import ChatGPT
from alignment_core.data.sources.formats.columns import ColumnMap, how_to_map
from alignment_core.data.sources.formats.comparisons import SHP, Halos, KWay, OpenAIPreference, PandaLM
from alignment_core.data.sources.formats.graded import Graded
from alignment_core.data.sources.formats.instructions import Alpaca, SelfInstruct
from alignment_core.data.sources.formats.sharegpt import ShareGPT
from alignment_core.data.sources.formats.standard import Demonstrations, Labelled, Pairs, Prompts, Rated
from alignment_core.data.sources.formats.traces import Traces
from alignment_core.data.sources.formats.transcripts import AnthropicHH
from alignment_core.data.sources.formats.trees import AssistantMessages, AssistantTree
from alignment_core.data.sources.formats.verdicts import Arena, HelpSteer, SafeRLHF, StepDPO
from alignment_core.errors import DataError
from alignment_core.plugin_calls import calling
from alignment_core.records.columns import ANSWER, CONTEXT, JUDGEMENT, TrackedRow
from alignment_core.records.format import Fields, RecordFormat, UnreadColumn

FORMATS: tuple[RecordFormat, ...] = (
    OpenWebUI(), ChatGPT(), OpenAIPreference(), LabelStudio(), AssistantTree(), AssistantMessages(), Halos(), PandaLM(),
    SHP(), HelpSteer(), SafeRLHF(), Arena(), StepDPO(),
    RatedTurns(), Argilla(), Gradio(), Traces(), Graded(), ShareGPT(), SelfInstruct(), Alpaca(), KWay(),
    AnthropicHH(), Pairs(), Labelled(), Rated(), Demonstrations(), Prompts(),
)  # fmt: skip
"""The built-in formats, in the order in which they are tried on a row.

A file is read in the format that matches most of its first rows.
"""
Plugged = Mapping[RecordFormat, Mapping[str, str]]
"""Record formats from plugins, each with its plugin's identity. They are tried before the built-in ones."""
NO_PLUGINS: Plugged = MappingProxyType({})
SAMPLE = 100
"""Number of rows used to detect a format."""
UNREAD = "columns that may change what a row means are not read"
"""What the error says if the format of a file leaves out such columns."""


@dataclass(frozen=True, slots=True)
class Detection:
    """The format of a file, and the reason for choosing it."""

    format: RecordFormat
    why: str


def detect(rows: Sequence[Any], source: SourceConfig, file: str, plugged: Plugged = NO_PLUGINS) -> Detection:
    """Detect the format of a file from its first rows.

    Raises:
        PluginError: `matches` of a format raised.
        DataError: the format in the settings does not exist, a mapped column is missing, no format matches the rows, or
            the one that matches leaves out columns that may change what a row means (`UNREAD`).
    """
    formats = (*plugged, *FORMATS)
    objects = [row for row in rows if isinstance(row, Mapping)]
    if source.format is not None:
        return Detection(_named(source.format, formats), "set by data.sources[].format")
    if source.columns:
        mapped = ", ".join(f"{ours} from {theirs}" for ours, theirs in source.columns.items())
        return Detection(ColumnMap(source.columns, objects, file), mapped)
    matched = [
        _first_that_matches(row, formats, f"{file}, row {i}")
        for i, row in enumerate(rows, start=1)
        if isinstance(row, Mapping)
    ]
    found = Counter(format_ for format_ in matched if format_ is not None)
    if not found:
        columns = sorted({str(key) for row in objects for key in row})
        raise DataError(
            "no known format matches these rows",
            where=file,
            got=f"columns {', '.join(columns)}" if columns else "rows that are not objects",
            expected="those of a known record format",
            do=how_to_map(objects) if columns else None,
        )
    best, hits = max(found.items(), key=lambda item: (item[1], -formats.index(item[0])))
    matching = f"{hits} of the first {len(rows)} rows match" if len(rows) > 1 else "the first row matches"
    if best.whole_source:
        return Detection(best, f"{matching} {best.shape}")
    read = _columns_read(best, [row for row in objects if _matches(best, row, file)], source, file)
    return Detection(best, f"{matching} {best.shape}" + (f", read from {', '.join(read)}" if read else ""))


def _columns_read(format_: RecordFormat, rows: Sequence[Fields], source: SourceConfig, file: str) -> list[str]:
    """Return the columns that the format reads in the rows.

    Raises:
        DataError: it leaves out some that may change what a row means.
    """
    read: dict[str, None] = {}
    left: dict[str, str] = {}
    for row in rows:
        fields = TrackedRow(row)
        try:
            format_.unread(fields, format_.read_with_tools(fields, file, source), file, source)
        except UnreadColumn as error:
            left |= error.columns
        except Exception:
            continue  # the row is quarantined with the reason when it is read
        read |= dict.fromkeys(name for name in map(str, row) if name in fields.read)
    if left:
        named = ", ".join(f"`{name}` (maybe {what})" for name, what in left.items())
        raise DataError(
            UNREAD,
            where=file,
            got=f"{named} beside {', '.join(read or sorted({str(name) for row in rows for name in row} - set(left)))}",
            expected=f"only columns of {format_.name}: {format_.shape}",
            do=_how_to_map(left, list(read)),
        )
    return list(read)


def _how_to_map(left: Mapping[str, str], read: Sequence[str]) -> str:
    ours = {JUDGEMENT: "label (or rating)", CONTEXT: "prompt (or system)", ANSWER: "rejected (or chosen)"}
    mapped = ", ".join(f"{ours[what]}: {name}" for name, what in left.items() if what in ours)
    advice = f"Map them with data.sources[].columns, e.g. {{{mapped}, …}}. " if mapped else ""
    return f"{advice}To leave them out, map only the columns that should be read" + (
        f", e.g. {', '.join(read)}" if read else ""
    )


def _first_that_matches(row: Mapping[str, Any], formats: Sequence[RecordFormat], place: str) -> RecordFormat | None:
    return next((candidate for candidate in formats if _matches(candidate, row, place)), None)


def _matches(candidate: RecordFormat, row: Mapping[str, Any], place: str) -> bool:
    with calling(candidate, "matches", place):
        return bool(candidate.matches(row))


def _named(name: str, formats: Sequence[RecordFormat]) -> RecordFormat:
    for candidate in formats:
        if candidate.name == name:
            return candidate
    names = [candidate.name for candidate in formats]
    close = get_close_matches(name, names, 1)
    raise DataError(
        "unknown record format",
        where="data.sources[].format",
        got=name,
        expected=", ".join(names),
        do=f"Did you mean {close[0]!r}?" if close else None,
    )
