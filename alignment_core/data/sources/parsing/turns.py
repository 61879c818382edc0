"""Parse one turn of a conversation: its role, text, thought, calls of tools, and whether it is learned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from alignment_core.records import Message
from alignment_core.records.format import MASK_KEYS, PREFIX_KEYS, THOUGHT_KEYS, BadRow
from alignment_core.records.thoughts import OpenThought, split_thought
from alignment_core.records.tools import BadTools, tool_definitions, without_nulls

ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "customer": "user",
    "question": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "answer": "assistant",
    "function_call": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "ipython": "tool",
}
"""Maps the role names of exporters to ours."""
TEXTS = ("text", "output_text", "input_text")
THOUGHTS = ("thinking", "reasoning", "thought")
"""Types of content parts."""


def turn_of(item: Any, field: str) -> Message:
    """Convert a message of any exporter to ours: role, content, and what else it has of

    `reasoning_content` (its thought), `tool_calls`, `tool_call_id`, `name`, `tools`, `weight` (0: only context) and
    `prefix` (the start of an answer, which a completion continues).

    Raises:
        BadRow: the message has no known role or no content, or a part of it cannot be used.
    """
    if not isinstance(item, Mapping):
        raise BadRow("bad_conversation", f"{field} has type {type(item).__name__}, expected a message")
    name = item.get("role", item.get("from"))
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise BadRow("unknown_role", f"{field} has the unknown role {name!r}")
    extra = _extra(item, field)
    parts = _Parts(field)
    content = parts.read(item.get("content", item.get("value", item.get("text"))), role, bool(extra.get("tool_calls")))
    if parts.results:
        role, extra = "tool", extra | {"tool_call_id": parts.results[0]}
    if parts.calls:
        extra["tool_calls"] = [*extra.get("tool_calls", ()), *parts.calls]
    if role == "assistant":
        content, inline = parted(content, field)
        thoughts = _thoughts(item, field) or parts.thoughts
        thought = "\n\n".join(text for text in [*thoughts, inline] if text.strip()).strip()
        if thought:
            extra["reasoning_content"] = checked(thought, field)
    elif not content.strip() and role != "tool":
        raise BadRow("empty_turn", f"{field} is empty")
    return {"role": role, "content": checked(content, field), **extra}


def parted(text: str, field: str) -> tuple[str, str]:
    """Return the answer in a text and the thought in front of it, which is empty if there is none.

    Raises:
        BadRow: the thought is not closed.
    """
    try:
        return split_thought(text)
    except OpenThought as error:
        raise BadRow("open_thought", f"{field} has {error}") from None


def checked(value: str, field: str) -> str:
    """Return `value` if it can be encoded as UTF-8 and has no NUL character.

    Raises:
        BadRow: otherwise.
    """
    if "\x00" in value:
        raise BadRow("nul_character", f"{field} contains a NUL character")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow("undecodable_text", f"{field}: {error.reason} at character {error.start}") from None
    return value


def _extra(item: Mapping[str, Any], field: str) -> dict[str, Any]:
    """Return what a message has besides its role, its text and its thought."""
    if len(item) == 2 and ("content" in item or "value" in item):
        return {}
    extra = {key: item[key] for key in ("tool_call_id", "name") if item.get(key)}
    calls = _calls(item.get("tool_calls"), f"{field}.tool_calls")
    legacy = item.get("function_call")
    if legacy and not calls:
        calls = _calls([legacy], f"{field}.function_call")
    if calls:
        extra["tool_calls"] = calls
    if item.get("tools"):
        try:
            extra["tools"] = tool_definitions(item["tools"])
        except BadTools as bad:
            raise BadRow("bad_tools", f"{field}.tools: {bad}") from None
    if _weight(item, field) == 0:
        extra["weight"] = 0
    if any(item.get(key) is True for key in PREFIX_KEYS):
        extra["prefix"] = True
    return extra


def _weight(item: Mapping[str, Any], field: str) -> int:
    """Return 0 for a turn that is only context, otherwise 1."""
    for key in MASK_KEYS:
        value = item.get(key)
        if value is None:
            continue
        word = str(value).strip().lower()
        if word in ("0", "0.0", "false"):
            return 0
        if word not in ("1", "1.0", "true"):
            raise BadRow("bad_weight", f"{field}.{key} is {value!r}, expected 0 or 1, false or true")
    return 1


def _thoughts(item: Mapping[str, Any], field: str) -> list[str]:
    """Return the thoughts under the keys of a message. The same thought under several keys counts once."""
    found: list[str] = []
    for key in THOUGHT_KEYS:
        value = item.get(key)
        if value in (None, "", [], {}):
            continue
        if not isinstance(value, str):
            raise BadRow("not_text", f"{field}.{key} has type {type(value).__name__}, expected text")
        if value not in found:
            found.append(value)
    return found


def _calls(value: Any, field: str) -> list[dict[str, Any]]:
    if isinstance(value, str) and value.strip():
        value = _json(value, field)
    if not value:
        return []
    if not isinstance(value, list):
        raise BadRow("bad_tool_call", f"{field} has type {type(value).__name__}, expected a list")
    return [_call(call, f"{field}[{index}]") for index, call in enumerate(value)]


def _call(call: Any, field: str) -> dict[str, Any]:
    """Return a call as `{id?, type: function, function: {name, arguments}}`, with the arguments as an object."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRow("bad_tool_call", f"{field} has no name of a function")
    arguments = function.get("arguments", function.get("input", function.get("parameters")))
    if isinstance(arguments, str):
        arguments = _json(arguments, f"{field}.arguments") if arguments.strip() else {}
    else:  # a columnar file gives every call the arguments of all others, as null
        arguments = without_nulls({} if arguments is None else arguments)
    if not isinstance(arguments, dict):
        raise BadRow("bad_tool_call", f"{field}.arguments has type {type(arguments).__name__}, expected an object")
    known = {"id": call["id"]} if call.get("id") else {}
    return {**known, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _json(text: str, field: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRow("bad_tool_call", f"{field} is not valid JSON") from None


class _Parts:
    """Reads a content, which may be a list of parts, and keeps its thoughts, calls and results of tools."""

    def __init__(self, field: str) -> None:
        self._field = field
        self.thoughts: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.results: list[Any] = []

    def read(self, content: Any, role: str, called: bool) -> str:
        """Return the text of a content."""
        if isinstance(content, str):
            return content
        if content is None and (called or role == "tool"):
            return ""
        if role == "tool" and not _is_parts(content):
            return json.dumps(content, ensure_ascii=False)
        if isinstance(content, Sequence):
            text = "".join(part if isinstance(part, str) else self._part(part) for part in content)
            if self.results and (len(self.results) > 1 or len(content) > 1):
                raise BadRow("not_text", f"{self._field} has a part `tool_result` beside others, expected a turn each")
            return text
        raise BadRow("bad_conversation", f"{self._field} has no text content ({type(content).__name__})")

    def _part(self, part: Any) -> str:
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        if isinstance(part, Mapping):
            if kind in TEXTS and isinstance(text := part.get("text", part.get("value")), str):
                return text
            if kind in THOUGHTS:
                text = next((part[key] for key in (*THOUGHTS, "text") if isinstance(part.get(key), str)), None)
                if text is not None:
                    self.thoughts.append(text)
                    return ""
            if kind == "tool_use":
                self.calls.append(_call(part, f"{self._field}.content"))
                return ""
            if kind == "tool_result":
                self.results.append(part.get("tool_use_id"))
                return _Parts(self._field).read(part.get("content"), "tool", called=False)
        raise BadRow("not_text", f"{self._field} contains a part that is not text: {kind}")


def _is_parts(content: Any) -> bool:
    """Whether a content is a list of texts and of parts with a type."""
    return (
        isinstance(content, Sequence)
        and len(content) > 0
        and all(isinstance(part, str) or (isinstance(part, Mapping) and "type" in part) for part in content)
    )
