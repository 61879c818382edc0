"""What stands before an answer, spread over several columns: a system prompt, earlier turns, and the question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from alignment_core.data.sources.formats.transcripts import as_turns
from alignment_core.data.sources.parsing import shapes
from alignment_core.records import Conversation, Message
from alignment_core.records.format import BadRow, Fields

PROMPT_NAMES = ("prompt", "question", "query", "instruction", "input")
SYSTEM_NAMES = ("system", "system_prompt", "system_message")


def first_of(row: Fields, names: Sequence[str]) -> str | None:
    """Return the first of the names that is a column of the row."""
    return next((name for name in names if name in row), None)


def first_pair_of(row: Fields, pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """Return the first of the pairs of names that are both columns of the row."""
    return next((names for names in pairs if names[0] in row and names[1] in row), None)


def asked(row: Fields, column: str) -> Conversation:
    """Return the prompt in a column (text, a transcript or messages) after the row's system prompt and history.

    Raises:
        BadRow: the prompt is empty or not a conversation, or the row has two different system prompts.
    """
    return with_system((*earlier_turns(row), *shapes.prompt(as_turns(row[column]), column)), row)


def with_system(messages: Conversation, row: Fields) -> Conversation:
    """Return the conversation with the system prompt of the row's own column, unless it starts with the same one.

    Raises:
        BadRow: the conversation starts with another system prompt.
    """
    column = next((name for name in SYSTEM_NAMES if row.get(name)), None)
    if column is None:
        return messages
    system = shapes.turn("system", row[column], column, "empty_prompt")
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"].strip() != system["content"].strip():
            raise BadRow("two_system_prompts", f"{column} and the first turn are different system prompts")
        return messages
    return (system, *messages)


def earlier_turns(row: Fields) -> Iterator[Message]:
    """Yield the turns in the column `history`: messages, or [question, answer] lists."""
    history: Any = row.get("history") or []
    if not isinstance(history, list):
        raise BadRow("bad_conversation", f"history has type {type(history).__name__}, expected a list of turns")
    if shapes.is_messages(history):
        yield from shapes.conversation(history, "history")
        return
    for index, turns in enumerate(history):
        if not isinstance(turns, list) or len(turns) != 2:
            raise BadRow("bad_conversation", f"history[{index}] is not a [question, answer] list")
        for role, value in zip(("user", "assistant"), turns, strict=True):
            yield shapes.turn(role, value, f"history[{index}]", "empty_turn")
