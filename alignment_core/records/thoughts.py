"""Separate an answer from the thought that is written in front of it."""

from __future__ import annotations

import html
import re

from alignment_core.records import Conversation, Message

THOUGHT = re.compile(r"\s*(?:<think>)?(.*?)</think>\s*", re.DOTALL)
OPEN, CLOSE = "<think>", "</think>"
DETAILS = re.compile(r"\s*<details\b[^>]*\btype=[\"']reasoning[\"'][^>]*>(.*?)</details>\s*", re.DOTALL)
"""Open WebUI's notation of a thought: a quotation under a summary."""
SUMMARY = re.compile(r"\s*<summary>.*?</summary>\s*", re.DOTALL)
QUOTED = re.compile(r"^(?:&gt;|>) ?", re.MULTILINE)


class OpenThought(ValueError):
    """Raised for a thought that is not closed, so that there is no answer."""


def split_thought(text: str) -> tuple[str, str]:
    """Return the answer and the thought in front of it, which is empty if there is none.

    Models whose prompt opens the thought write only its end. A later `<think>` is part of the answer.

    Raises:
        OpenThought: the thought is not closed.
    """
    thoughts: list[str] = []
    while "<details" in text and (found := DETAILS.match(text)):
        thoughts.append(html.unescape(QUOTED.sub("", SUMMARY.sub("", found.group(1), count=1))).strip())
        text = text[found.end() :]
    if CLOSE in text and text.find(OPEN) in (-1, len(text) - len(text.lstrip())):
        found = THOUGHT.match(text)
        if found is not None:
            thoughts.append(found.group(1).strip())
            text = text[found.end() :]
    elif text.lstrip().startswith(OPEN):
        raise OpenThought(f"{OPEN} without {CLOSE}: there is no answer after the thought")
    return text, "\n\n".join(thought for thought in thoughts if thought)


def with_thoughts(messages: Conversation) -> Conversation:
    """Return a conversation whose complete thoughts (`<think>…</think>`) are beside the assistant's texts."""
    if not any(CLOSE in (message.get("content") or "") for message in messages):
        return messages
    return tuple(_with_thought(message) for message in messages)


def _with_thought(message: Message) -> Message:
    content = message.get("content") or ""
    if message["role"] != "assistant" or CLOSE not in content or not content.lstrip().startswith(OPEN):
        return message
    answer, thought = split_thought(content)
    if not answer.strip() or not thought or message.get("reasoning_content"):
        return message
    return {**message, "content": answer, "reasoning_content": thought}
