"""Parse the values that formats share: conversations, completions, labels and numbers, in their many notations."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from alignment_core.data.sources.parsing.turns import checked, parted, turn_of
from alignment_core.records import Conversation, Message
from alignment_core.records.columns import DOWN, UP, is_missing
from alignment_core.records.format import BadRow


def loaded(value: Any, starts: str = "{[") -> Any:
    """Parse a text that starts with one of the characters as JSON, as CSV and some exports store it, if it is JSON."""
    if isinstance(value, str) and value.lstrip()[:1] in tuple(starts):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def is_messages(value: Any) -> bool:
    """Whether `value` looks like a list of chat messages with OpenAI's or ShareGPT's keys."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(item, Mapping) and ("role" in item or "from" in item) for item in value)
    )


def conversation(value: Any, field: str) -> Conversation:
    """Convert a list of messages to canonical messages.

    Raises:
        BadRow: the value is not a list or is empty, or a message has no known role or no content.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadRow("bad_conversation", f"{field} has type {type(value).__name__}, expected a list of messages")
    messages = tuple(turn_of(item, f"{field}[{index}]") for index, item in enumerate(value))
    if not messages:
        raise BadRow("empty_prompt", f"{field} is an empty list")
    return messages


def prompt(value: Any, field: str = "prompt", system: Any = None) -> Conversation:
    """Convert text or a list of messages to a prompt. An assistant turn at its end is the start of the completion.

    Raises:
        BadRow: the value is null, empty or not a conversation.
    """
    value = _scalar_as_text(value)
    if value is None:
        raise BadRow("empty_prompt", f"{field} is null")
    messages = (
        conversation(value, field) if not isinstance(value, str) else (turn("user", value, field, "empty_prompt"),)
    )
    if messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        messages = (*messages[:-1], {**messages[-1], "prefix": True})
    if system:
        messages = ({"role": "system", "content": text(system, "system", "empty_prompt")}, *messages)
    return messages


def completion(value: Any, field: str) -> Conversation:
    """Convert text, one message, or a list of messages that starts and ends with an assistant turn to a completion.

    Raises:
        BadRow: the value is null or empty, or does not start and end with an assistant turn.
    """
    value = _scalar_as_text(value)
    if isinstance(value, Mapping):
        value = [value]
    if value is None or value == []:
        raise BadRow("empty_completion", f"{field} is null or empty")
    if not isinstance(value, str):
        messages = conversation(value, field)
        for place, message in (("starts", messages[0]), ("ends", messages[-1])):
            if message["role"] != "assistant":
                raise BadRow(
                    "no_assistant_turn", f"{field} {place} with a {message['role']!r} turn, expected 'assistant'"
                )
        if not messages[-1].get("content", "").strip() and not messages[-1].get("tool_calls"):
            raise BadRow("empty_completion", f"{field} is empty")
        if not any(_is_learned(message) for message in messages):
            raise BadRow("nothing_to_learn", f"{field} has no assistant turn with a weight")
        return messages
    answer, thought = parted(text(value, field, "empty_completion"), field)
    message = turn("assistant", answer, field, "empty_completion")
    return ({**message, "reasoning_content": thought} if thought else message,)


def turn(role: str, value: Any, field: str, empty: str) -> Message:
    """Return one message. `empty` is the quarantine reason for an empty text."""
    return {"role": role, "content": text(value, field, empty)}


def text(value: Any, field: str, empty: str) -> str:
    """Return `value` as text that is not blank, can be encoded as UTF-8 and has no NUL character.

    Raises:
        BadRow: the value is not such a text.
    """
    value = _scalar_as_text(value)
    if not isinstance(value, str):
        if value is None:
            raise BadRow(empty, f"{field} is null")
        raise BadRow("not_text", f"{field} has type {type(value).__name__}, expected text")
    if not value.strip():
        raise BadRow(empty, f"{field} is empty")
    return checked(value, field)


def split_last_turn(messages: Conversation, field: str) -> tuple[Conversation, Conversation]:
    """Return the turns before the last assistant turn of a conversation, and that turn. Later turns are left out.

    A turn with the weight 0 is not the last one, because it is not learned.

    Raises:
        BadRow: there is no assistant turn, all have the weight 0, or the last one is empty.
    """
    for index in range(len(messages) - 1, -1, -1):
        if _is_learned(messages[index]):
            return messages[:index], completion([messages[index]], f"{field}[{index}]")
    if any(message["role"] == "assistant" for message in messages):
        raise BadRow("nothing_to_learn", f"{field} has no assistant turn with a weight")
    raise BadRow("no_assistant_turn", f"{field} has no assistant turn")


def _is_learned(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("weight") != 0


def common_prefix(first: Conversation, second: Conversation) -> tuple[Conversation, Conversation, Conversation]:
    """Split two conversations into their shared first turns and the rest of each, which starts with an assistant turn.

    Raises:
        BadRow: the conversations are the same, or do not start with the same prompt.
    """
    shared = 0
    while shared < min(len(first), len(second)) and first[shared] == second[shared]:
        shared += 1
    if shared == len(first) == len(second):
        raise BadRow("identical_completions", "chosen and rejected are the same")
    while shared and any(len(c) <= shared or c[shared]["role"] != "assistant" for c in (first, second)):
        shared -= 1
    if shared == 0 and any(c[0]["role"] != "assistant" for c in (first, second)):
        raise BadRow("different_prompts", "chosen and rejected do not start with the same prompt")
    return first[:shared], completion(first[shared:], "chosen"), completion(second[shared:], "rejected")


def label(value: Any, field: str = "label", desirable: Sequence[str] = ()) -> bool | None:
    """Return True for thumbs up, False for thumbs down and None if the value is empty.

    Args:
        value: a bool, a number (1 is up, 0 and -1 are down), a word or an emoji.
        field: column name for errors.
        desirable: words that mean thumbs up, if the user set them. Every other word then means thumbs down.

    Raises:
        BadRow: the value is not a known label.
    """
    if desirable:
        return None if is_missing(value) else str(value) in desirable
    if isinstance(value, bool):
        return value
    if is_missing(value):
        return None
    if isinstance(value, int | float):
        if value in (0, 1, -1):
            return value == 1
    elif isinstance(value, str):
        word = value.strip().lower()
        if word in UP or word in DOWN:
            return word in UP
    raise BadRow("bad_label", f"{field} is {value!r}, expected true/false, 1/0, 1/-1, yes/no or 👍/👎")


def number(value: Any, field: str) -> float | None:
    """Return a finite number from a number or its text, or None if the value is empty.

    Raises:
        BadRow: the value is anything else.
    """
    if is_missing(value):
        return None
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadRow("bad_number", f"{field} is {value!r}, expected a number") from None
    if not math.isfinite(result):
        raise BadRow("bad_number", f"{field} is {value!r}, expected a finite number")
    return result


def _scalar_as_text(value: Any) -> Any:
    """Undo the conversions of spreadsheets and typed exports: "42" to a number, "True" to a bool, empty to NaN."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return str(value) if isinstance(value, bool | int | float) else value
