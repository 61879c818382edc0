"""Helpers that detect and read rows as ingestion does, and short constructors for records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from alignment_core.config import SourceConfig
from alignment_core.data.sources.formats import FORMATS, detect
from alignment_core.data.sources.readers import RawRow
from alignment_core.records import Demonstration, LabelledResponse, PreferencePair, Prompt, Record
from alignment_core.records.format import Dropped, Quarantined, Reading, Unread


@dataclass
class Found:
    """The outcome of reading rows. Records have no origins."""

    format: str
    records: list[Record] = field(default_factory=list)
    voters: list[str | None] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)


def found(rows: Sequence[Any], **settings: Any) -> Found:
    """Detect the rows' format and read them."""
    source = SourceConfig(path="rows.jsonl", **settings)
    detection = detect(list(rows), source, "rows.jsonl")
    raw = [RawRow(row, f"rows.jsonl:{line}") for line, row in enumerate(rows, 1)]
    result = Found(detection.format.name)
    for outcome in detection.format.records(iter(raw), source):
        if isinstance(outcome, Reading):
            assert outcome.record.origin.startswith("rows.jsonl:")
            result.records.append(replace(outcome.record, origin=""))
            result.voters.append(outcome.voter)
        elif isinstance(outcome, Dropped):
            result.dropped[outcome.reason] += 1
        elif isinstance(outcome, Unread):
            result.ignored.update(outcome.columns.keys())
        else:
            assert isinstance(outcome, Quarantined)
            result.bad[outcome.reason] += 1
            result.details.append(outcome.detail)
    return result


def named(name: str) -> Any:
    """Return the format of this name."""
    return next(item for item in FORMATS if item.name == name)


def turns(*contents: str) -> tuple[dict[str, str], ...]:
    """Return alternating turns, the user first. Prefixes "system: ", "tool: " and "assistant: " set the role."""
    result: list[dict[str, str]] = []
    for content in contents:
        role = "assistant" if result and result[-1]["role"] == "user" else "user"
        for name in ("system", "tool", "assistant"):
            if content.startswith(f"{name}: "):
                role, content = name, content.removeprefix(f"{name}: ")
        result.append({"role": role, "content": content})
    return tuple(result)


def answer(content: str) -> tuple[dict[str, str], ...]:
    """Return an assistant turn."""
    return ({"role": "assistant", "content": content},)


def demo(*contents: str) -> Demonstration:
    return Demonstration(turns(*contents))


def pair(prompt: str | tuple[Any, ...], chosen: str, rejected: str, margin: float | None = None) -> PreferencePair:
    messages = turns(prompt) if isinstance(prompt, str) else prompt
    return PreferencePair(messages, answer(chosen), answer(rejected), margin)


def thumb(prompt: str | tuple[Any, ...], response: str, desirable: bool) -> LabelledResponse:
    messages = turns(prompt) if isinstance(prompt, str) else prompt
    return LabelledResponse(messages, answer(response), desirable)


def prompt(*contents: str) -> Prompt:
    return Prompt(turns(*contents))
