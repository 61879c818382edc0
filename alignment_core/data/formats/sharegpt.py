"""ShareGPT: conversations of `{from, value}` turns, with tool calls, a ranked last turn or a thumb."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from alignment_core.config import SourceConfig
from alignment_core.data.formats import shapes
from alignment_core.data.formats.comparing import pair
from alignment_core.data.formats.standard import demonstrations
from alignment_core.record_format import BadRow, Dropped, Fields, Outcome, Reading, RecordFormat
from alignment_core.records import Conversation, LabelledResponse, Message


class ShareGPT(RecordFormat):
    """A conversation; with `chosen` and `rejected` a pair, with `kto_tag` or `label` a thumb."""

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
            yield Reading(pair(messages, sides[0], sides[1], None, origin))
            return
        label = next((row[name] for name in ("kto_tag", "label") if name in row), None)
        if label is None:
            yield from demonstrations(messages, "conversations", origin)
            return
        desirable = shapes.label(label, desirable=source.desirable)
        if desirable is None:
            yield Dropped("no_label", origin)
            return
        prompt, response = shapes.split_last_turn(messages, "conversations")
        yield Reading(LabelledResponse(prompt, response, desirable, 1.0, origin))


def _conversation(row: Fields) -> Conversation:
    messages = shapes.conversation([_called(turn) for turn in row[_column(row)]], _column(row))
    if row.get("system"):
        messages = (shapes.turn("system", row["system"], "system", "empty_prompt"), *messages)
    return with_tools(messages, row.get("tools"))


def _column(row: Fields) -> str:
    return "conversations" if "conversations" in row else "conversation"


def with_tools(messages: Conversation, tools: Any) -> Conversation:
    """The conversation with the definitions of its tools on its first turn, where the renderer looks for them.

    Raises:
        BadRow: the definitions are no JSON list.
    """
    if not tools:
        return messages
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise BadRow("bad_tools", "tools is no JSON") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow("bad_tools", "tools is no list of objects")
    return ({**messages[0], "tools": tools}, *messages[1:]) if tools else messages


def _called(turn: Any) -> Any:
    """A `function_call` turn as an assistant turn with tool calls; any other turn as it is."""
    if not isinstance(turn, Mapping) or turn.get("from") != "function_call":
        return turn
    try:
        calls = json.loads(turn.get("value") or "")
    except (ValueError, TypeError, RecursionError):
        return turn
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return turn
    return {"role": "assistant", "content": "", "tool_calls": list(_tool_calls(calls))}


def _tool_calls(calls: list[dict[str, Any]]) -> Iterator[Message]:
    for call in calls:
        yield {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}
