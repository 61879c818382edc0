"""The small shapes that formats share: conversations, completions, labels and numbers, from whatever people write."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from alignment_core.record_format import BadRow
from alignment_core.records import Conversation, Message

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
"""Names that exporters give the roles."""
UP = frozenset(
    {
        "true",
        "1",
        "1.0",
        "+1",
        "yes",
        "y",
        "up",
        "thumbs_up",
        "thumbsup",
        "like",
        "liked",
        "good",
        "positive",
        "desirable",
        "👍",
        "👍🏻",
        "👍🏼",
        "👍🏽",
        "👍🏾",
        "👍🏿",
    }
)
DOWN = frozenset(
    {
        "false",
        "0",
        "0.0",
        "-1",
        "-1.0",
        "no",
        "n",
        "down",
        "thumbs_down",
        "thumbsdown",
        "dislike",
        "disliked",
        "bad",
        "negative",
        "undesirable",
        "👎",
        "👎🏻",
        "👎🏼",
        "👎🏽",
        "👎🏾",
        "👎🏿",
    }
)


def is_messages(value: Any) -> bool:
    """Whether `value` looks like a list of chat messages, in OpenAI's or ShareGPT's words."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(item, Mapping) and ("role" in item or "from" in item) for item in value)
    )


def conversation(value: Any, field: str) -> Conversation:
    """A list of messages as canonical ones.

    Raises:
        BadRow: a message without a known role or without content.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadRow("bad_conversation", f"{field}: {type(value).__name__} where a list of messages was expected")
    messages = tuple(_message(item, f"{field}[{index}]") for index, item in enumerate(value))
    if not messages:
        raise BadRow("empty_prompt", f"{field} is an empty list")
    return messages


def prompt(value: Any, field: str = "prompt", system: Any = None) -> Conversation:
    """A prompt from a text or a list of messages.

    Raises:
        BadRow: it is null, empty or no conversation.
    """
    value = _scalar_as_text(value)
    if value is None:
        raise BadRow("empty_prompt", f"{field} is null")
    messages = (
        conversation(value, field) if not isinstance(value, str) else (turn("user", value, field, "empty_prompt"),)
    )
    if system:
        messages = ({"role": "system", "content": text(system, "system", "empty_prompt")}, *messages)
    return messages


def completion(value: Any, field: str) -> Conversation:
    """A completion from a text, one message or a list of messages that starts and ends with an assistant turn.

    Raises:
        BadRow: it is null, empty, or starts or ends with another turn.
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
                raise BadRow("no_assistant_turn", f"{field} {place} with a turn of {message['role']!r}")
        if not messages[-1].get("content", "").strip() and not messages[-1].get("tool_calls"):
            raise BadRow("empty_completion", f"{field} is empty")
        return messages
    return (turn("assistant", value, field, "empty_completion"),)


def turn(role: str, value: Any, field: str, empty: str) -> Message:
    """One message; `empty` is the reason that an empty text is quarantined under."""
    return {"role": role, "content": text(value, field, empty)}


def text(value: Any, field: str, empty: str) -> str:
    """A text that is not blank, can be encoded and holds no NUL.

    Raises:
        BadRow: otherwise.
    """
    value = _scalar_as_text(value)
    if not isinstance(value, str):
        if value is None:
            raise BadRow(empty, f"{field} is null")
        raise BadRow("not_text", f"{field}: {type(value).__name__} where text was expected")
    if not value.strip():
        raise BadRow(empty, f"{field} is empty")
    return checked(value, field)


def checked(value: str, field: str) -> str:
    """`value`, if UTF-8 can hold it and it has no NUL."""
    if "\x00" in value:
        raise BadRow("nul_character", f"{field} holds a NUL character")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow("undecodable_text", f"{field}: {error.reason} at character {error.start}") from None
    return value


def split_last_turn(messages: Conversation, field: str) -> tuple[Conversation, Conversation]:
    """A conversation's turns before its last assistant turn, and that turn; what follows it is left off.

    Raises:
        BadRow: there is no assistant turn, or it says nothing.
    """
    for index in range(len(messages) - 1, -1, -1):
        if messages[index]["role"] == "assistant":
            return messages[:index], completion([messages[index]], f"{field}[{index}]")
    raise BadRow("no_assistant_turn", f"{field} has no assistant turn")


def common_prefix(first: Conversation, second: Conversation) -> tuple[Conversation, Conversation, Conversation]:
    """The turns that two conversations share at their start, and the rest of each; both rests start with an
    assistant turn.

    Raises:
        BadRow: they are the same, or part at a turn that is not the assistant's.
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
    """A thumb from the many ways to write one; None where it says neither.

    Args:
        value: a bool, a number (1 up; 0 and -1 down), a word or an emoji.
        field: its column, for errors.
        desirable: the words that mean thumbs up, where the user says which; every other one means down.

    Raises:
        BadRow: nothing that we know as a label.
    """
    if desirable:
        return None if value in (None, "") else str(value) in desirable
    if isinstance(value, bool):
        return value
    if value is None or value == "":
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
    """A finite number, from a number or its text; None where there is none.

    Raises:
        BadRow: something else.
    """
    if value is None or value == "" or isinstance(value, bool):
        return None if not isinstance(value, bool) else float(value)
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise BadRow("bad_number", f"{field} is {value!r} where a number was expected") from None
    if not math.isfinite(result):
        raise BadRow("bad_number", f"{field} is {value!r} where a finite number was expected")
    return result


def _scalar_as_text(value: Any) -> Any:
    """Spreadsheets and typed exports make "42" a number and "True" a truth value; an empty cell becomes NaN."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return str(value) if isinstance(value, bool | int | float) else value


def _message(item: Any, field: str) -> Message:
    if not isinstance(item, Mapping):
        raise BadRow("bad_conversation", f"{field}: {type(item).__name__} where a message was expected")
    name = item.get("role", item.get("from"))
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise BadRow("unknown_role", f"{field} has the role {name!r}")
    extra = {
        key: item[key] for key in ("tool_calls", "tool_call_id", "name", "tools", "reasoning_content") if item.get(key)
    }
    content = item.get("content", item.get("value", item.get("text")))
    if content is None and extra.get("tool_calls"):
        content = ""
    content = _joined_parts(content, field)
    if not content.strip() and role != "assistant":
        raise BadRow("empty_turn", f"{field} is empty")
    return {"role": role, "content": checked(content, field), **extra}


def _joined_parts(content: Any, field: str) -> str:
    """The text of a content that may be a list of parts (`{type: text, text}`)."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        parts = [part if isinstance(part, str) else _part(part, field) for part in content]
        return "".join(parts)
    raise BadRow("bad_conversation", f"{field} has no text content ({type(content).__name__})")


def _part(part: Any, field: str) -> str:
    if isinstance(part, Mapping) and part.get("type", "text") in ("text", "output_text", "input_text"):
        value = part.get("text", part.get("value"))
        if isinstance(value, str):
            return value
    raise BadRow("not_text", f"{field} holds a part that is not text")
