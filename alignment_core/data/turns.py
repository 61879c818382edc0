"""Turns as chat templates like them: what every template takes, and whether one left something out."""

from __future__ import annotations

import json
from typing import Any

from alignment_core.records import Conversation


class Refusal(Exception):
    """The template raised, or left a turn out."""


def rewritten(messages: Conversation) -> Conversation:
    """The same words in user and assistant turns alone, for templates that refuse or leave out anything else."""
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
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += "\n\n" + text
        else:
            turns.append({"role": role, "content": text})
    if system:
        turns.insert(0, {"role": "user", "content": "\n\n".join(system)})
    return tuple(turns)


def is_plain(prompt: Conversation, completion: Conversation) -> bool:
    """One answer to a user, of words alone; where a template treats thoughts or markup apart, there is a "<"."""
    if len(completion) != 1 or not prompt or prompt[-1]["role"] != "user":
        return False
    return len(completion[0]) == 2 and "<" not in completion[0]["content"]


def check_all_there(messages: Conversation, text: str) -> None:
    """Raise `Refusal` if the words of a turn that is not the assistant's are not in the rendered text."""
    for message in messages:
        content = (message.get("content") or "").strip()
        if message["role"] == "assistant" or not content or content in text:
            continue
        if not any(json.dumps(content, ensure_ascii=ascii_)[1:-1] in text for ascii_ in (False, True)):
            raise Refusal(f"it leaves out a turn of {message['role']!r}")
