"""ShareGPT: conversations of `{from, value}` turns, with tool calls, a pair of last turns or a label."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from alignment_core.config import SourceConfig
from alignment_core.data.sources.formats.context import with_system
from alignment_core.data.sources.formats.standard import demonstrations
from alignment_core.data.sources.parsing import shapes
from alignment_core.data.sources.parsing.judgments import label_column, label_of, preference_pair
from alignment_core.records import Conversation, LabelledResponse
from alignment_core.records.format import Dropped, Fields, Outcome, Reading, RecordFormat


class ShareGPT(RecordFormat):
    """A demonstration, a preference pair (`chosen` and `rejected`) or a labelled response (`kto_tag` or `label`)."""

    name: ClassVar[str] = "sharegpt"
    shape: ClassVar[str] = "{conversations: [{from: human|gpt|…, value}]}"

    def matches(self, row: Fields) -> bool:
        turns = row.get(_column(row))
        rated = isinstance(turns, list) and any(isinstance(turn, Mapping) and "rating" in turn for turn in turns)
        return isinstance(turns, list) and not rated

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        messages = _conversation(row)
        if "chosen" in row and "rejected" in row:
            sides = [shapes.completion(_called(row[side]), side) for side in ("chosen", "rejected")]
            yield Reading(preference_pair(messages, sides[0], sides[1], None, origin))
            return
        label = label_column(row)
        if label is None:
            yield from demonstrations(messages, "conversations", origin)
            return
        desirable = label_of(row, label, source)
        if desirable is None:
            yield Dropped("no_label", origin)
            return
        prompt, response = shapes.split_last_turn(messages, "conversations")
        yield Reading(LabelledResponse(prompt, response, desirable, 1.0, origin))


def _conversation(row: Fields) -> Conversation:
    messages = shapes.conversation([_called(turn) for turn in row[_column(row)]], _column(row))
    return with_system(messages, row)


def _column(row: Fields) -> str:
    return "conversations" if "conversations" in row else "conversation"


def _called(turn: Any) -> Any:
    """Convert a `function_call` turn to an assistant turn with tool calls. Return any other turn unchanged."""
    if not isinstance(turn, Mapping) or turn.get("from") != "function_call":
        return turn
    try:
        calls = json.loads(turn.get("value") or "")
    except (ValueError, TypeError, RecursionError):
        return turn
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return turn
    return {**turn, "value": "", "tool_calls": calls}
