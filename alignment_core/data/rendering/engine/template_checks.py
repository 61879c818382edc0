"""Convert turns to a form that every chat template accepts, and check that a template left none out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from alignment_core.data.rendering.engine.message_forms import THOUGHT
from alignment_core.records import Conversation


class TemplateRefusal(Exception):
    """The template raised an error or left out a part of the conversation."""


def as_user_and_assistant_turns(messages: Conversation) -> Conversation:
    """Return the same text in user and assistant turns only, for templates that refuse or leave out other roles.

    Raises:
        TemplateRefusal: an answer to learn and one that is only context would become one turn.
    """
    turns: list[dict[str, Any]] = []
    system: list[str] = []
    for message in messages:
        parts = [message.get("content") or ""]
        parts += [json.dumps(message[key], ensure_ascii=False) for key in ("tools", "tool_calls") if message.get(key)]
        text = "\n\n".join(part for part in parts if part)
        if message["role"] == "system":
            system.append(text)
            continue
        role = "assistant" if message["role"] == "assistant" else "user"
        if role == "user" and system:
            text, system = "\n\n".join([*system, text]), []
        kept = {key: message[key] for key in (THOUGHT, "weight", "prefix") if key in message and role == "assistant"}
        if turns and turns[-1]["role"] == role:
            _append(turns[-1], text, kept)
        else:
            turns.append({"role": role, "content": text, **kept})
    if system:
        turns.insert(0, {"role": "user", "content": "\n\n".join(system)})
    return tuple(turns)


def _append(turn: dict[str, Any], text: str, kept: dict[str, Any]) -> None:
    if turn.get("weight", 1) != kept.get("weight", 1):
        raise TemplateRefusal("it refuses answers in a row, of which only some are learned")
    thoughts = [thought for thought in (turn.get(THOUGHT), kept.get(THOUGHT)) if thought]
    turn["content"] = "\n\n".join(part for part in (turn["content"], text) if part)
    turn |= {THOUGHT: "\n\n".join(thoughts)} if thoughts else {}


def is_plain_answer(prompt: Conversation, completion: Conversation) -> bool:
    """Whether the completion is one text-only answer to a user turn.

    Text with "<" is excluded, because templates may treat thoughts or markup specially.
    """
    if len(completion) != 1 or not prompt or prompt[-1]["role"] != "user":
        return False
    return len(completion[0]) == 2 and "<" not in completion[0]["content"]


def is_text(prompt: Conversation, completions: Sequence[Conversation]) -> bool:
    """Whether there is no conversation, only one text."""
    return (
        not prompt
        and len(completions) == 1
        and len(completions[0]) == 1
        and set(completions[0][0]) == {"role", "content"}
    )


def check_no_turn_is_missing(messages: Conversation, text: str) -> None:
    """Raise `TemplateRefusal` if the text of a turn, except an assistant turn, is missing from the rendered text."""
    for message in messages:
        content = (message.get("content") or "").strip()
        if message["role"] == "assistant" or not content or content in text:
            continue
        if not any(json.dumps(content, ensure_ascii=ascii_)[1:-1] in text for ascii_ in (False, True)):
            raise TemplateRefusal(f"it leaves out a turn with the role {message['role']!r}")
