"""Write the turns of a conversation in the form that a template reads: its thoughts, its contents and its call ids."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from alignment_core.records import Conversation, Message

THOUGHT = "reasoning_content"
"""The key of a turn's thought in our records."""
OURS = frozenset({"tools", "weight", "prefix", THOUGHT})
"""Keys of our records that a template does not get under their name."""
FIELDS = ("reasoning_content", "reasoning", "thinking", "thought")
"""Keys under which templates look for a turn's thought."""
SHORT = 9
"""Length of a call's id in the templates that check it."""
OPEN, CLOSE = "<think>\n", "\n</think>\n\n"


@dataclass(frozen=True, slots=True)
class Form:
    """How a template wants turns.

    Attributes:
        thoughts: `fields`: in keys of their own. `inline`: in the content, where the template looks for `</think>`.
            `text`: in the content of a template that has no place for them. `left_out`: not at all.
        parts: whether the content is a list of parts.
        short_ids: whether the id of a call has nine letters or digits.
        text_arguments: whether the arguments of a call are JSON text, not an object.
    """

    thoughts: Literal["fields", "inline", "text", "left_out"] = "left_out"
    parts: bool = False
    short_ids: bool = False
    text_arguments: bool = False

    def messages(self, messages: Conversation) -> list[dict[str, Any]]:
        """Return the turns for the template."""
        turns = [self._turn(message) for message in messages]
        if self.short_ids:
            _shorten_ids(turns)
        return turns

    def _turn(self, message: Message) -> dict[str, Any]:
        if len(message) == 2 and not self.parts:
            return dict(message)
        turn = {key: value for key, value in message.items() if key not in OURS}
        thought, content = message.get(THOUGHT), message.get("content") or ""
        if thought and self.thoughts == "fields":
            turn |= dict.fromkeys(FIELDS, thought)
        elif thought and self.thoughts != "left_out":
            turn["content"] = content = f"{OPEN}{thought}{CLOSE}{content}"
        if self.text_arguments and turn.get("tool_calls"):
            turn["tool_calls"] = [_with_text_arguments(call) for call in turn["tool_calls"]]
        if self.parts:
            turn["content"] = [{"type": "text", "text": content}] if content else []
        return turn


def _with_text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def _shorten_ids(turns: list[dict[str, Any]]) -> None:
    """Give every call an id of nine letters and digits, and the results the ids of their calls."""
    waiting: list[str] = []
    renamed: dict[str, str] = {}
    for place, turn in enumerate(turns):
        if turn.get("tool_calls"):
            calls = []
            for number, call in enumerate(turn["tool_calls"]):
                old = str(call.get("id") or f"{place}/{number}")
                renamed[old] = _short(old)
                waiting.append(renamed[old])
                calls.append({**call, "id": renamed[old]})
            turn["tool_calls"] = calls
        elif turn["role"] == "tool":
            known = renamed.get(str(turn.get("tool_call_id")))
            turn["tool_call_id"] = known or (waiting[0] if waiting else _short(str(place)))
            if turn["tool_call_id"] in waiting:
                waiting.remove(turn["tool_call_id"])


def _short(name: str) -> str:
    letters = string.ascii_letters + string.digits
    if len(name) == SHORT and all(letter in letters for letter in name):
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=SHORT).digest()
    return "".join(letters[byte % len(letters)] for byte in digest)


def has_thought(message: Mapping[str, Any]) -> bool:
    """Whether a turn has a thought beside its text."""
    return bool(message.get(THOUGHT))
