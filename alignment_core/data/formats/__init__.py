"""Every record format that we read, and how one is recognised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from alignment_core.config import SourceConfig
from alignment_core.data.formats.annotation import Argilla, LabelStudio
from alignment_core.data.formats.chat_apps import Gradio, OpenWebUI, RatedTurns
from alignment_core.data.formats.columns import ColumnMap
from alignment_core.data.formats.compared import SHP, Halos, KWay, OpenAIPreference, PandaLM
from alignment_core.data.formats.graded import Graded
from alignment_core.data.formats.instructions import Alpaca, SelfInstruct
from alignment_core.data.formats.sharegpt import ShareGPT
from alignment_core.data.formats.standard import Demonstrations, Labelled, Pairs, Prompts, Rated
from alignment_core.data.formats.traces import Traces
from alignment_core.data.formats.transcripts import AnthropicHH
from alignment_core.data.formats.trees import AssistantMessages, AssistantTree
from alignment_core.errors import DataError
from alignment_core.record_format import RecordFormat

FORMATS: tuple[RecordFormat, ...] = (
    OpenWebUI(), OpenAIPreference(), LabelStudio(), AssistantTree(), AssistantMessages(), Halos(), PandaLM(), SHP(),
    RatedTurns(), Argilla(), Gradio(), Traces(), Graded(), ShareGPT(), SelfInstruct(), Alpaca(), KWay(),
    AnthropicHH(), Pairs(), Labelled(), Rated(), Demonstrations(), Prompts(),
)  # fmt: skip
"""In the order in which they are asked about a row; the one that most of the first rows are of reads the file."""
Plugged = Mapping[RecordFormat, Mapping[str, str]]
"""Record formats that plugins bring, each with its plugin's identity. They are asked before ours."""
NO_PLUGINS: Plugged = MappingProxyType({})
SAMPLE = 100
"""Rows that are looked at to recognise a format."""


@dataclass(frozen=True, slots=True)
class Detection:
    """The format of a file, and why."""

    format: RecordFormat
    why: str


def detect(rows: Sequence[Any], source: SourceConfig, file: str, plugged: Plugged = NO_PLUGINS) -> Detection:
    """Choose the format of a file from its first rows.

    Raises:
        DataError: the named format does not exist, the columns are not there, or nothing recognises the rows.
    """
    formats = (*plugged, *FORMATS)
    objects = [row for row in rows if isinstance(row, Mapping)]
    if source.format is not None:
        return Detection(_named(source.format, formats), "named in the settings")
    if source.columns:
        mapped = ", ".join(f"{ours} from {theirs}" for ours, theirs in source.columns.items())
        return Detection(ColumnMap(source.columns, objects, file), mapped)
    found = Counter(format_ for row in objects if (format_ := _first_that_matches(row, formats)) is not None)
    if not found:
        columns = sorted({str(key) for row in objects for key in row})
        raise DataError(
            "no known format fits these rows",
            where=file,
            got=f"columns {', '.join(columns)}" if columns else "no rows that are objects",
            expected=f"one of {', '.join(item.name for item in formats)}",
            do="Map your columns with data.sources[].columns, e.g. {prompt: …, chosen: …, rejected: …}",
        )
    best, hits = max(found.items(), key=lambda item: (item[1], -formats.index(item[0])))
    return Detection(best, f"{hits} of the first {len(rows)} rows look like {best.shape}")


def _first_that_matches(row: Mapping[str, Any], formats: Sequence[RecordFormat]) -> RecordFormat | None:
    return next((candidate for candidate in formats if _matches(candidate, row)), None)


def _matches(candidate: RecordFormat, row: Mapping[str, Any]) -> bool:
    try:
        return bool(candidate.matches(row))
    except Exception:
        return False  # a plugin's format that cannot look at other people's rows harms nobody


def _named(name: str, formats: Sequence[RecordFormat]) -> RecordFormat:
    for candidate in formats:
        if candidate.name == name:
            return candidate
    names = [candidate.name for candidate in formats]
    close = get_close_matches(name, names, 1)
    raise DataError(
        "there is no such record format",
        where="data.sources[].format",
        got=name,
        expected=", ".join(names),
        do=f"Did you mean {close[0]!r}?" if close else None,
    )
