"""The record format of LibreChat's conversation export: JSON with thumbs on messages, in a list or nested branches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from alignment_core.plugin_api import (
    BadRow,
    Conversation,
    Dropped,
    LabelledResponse,
    Reading,
    RecordFormat,
    SourceConfig,
    hookimpl,
)

THUMBS = {"thumbsUp": True, "thumbsDown": False}
Message = Mapping[str, Any]


class LibreChat(RecordFormat):
    """One exported conversation. Each rated message becomes a labelled response with the turns before it as prompt."""

    name: ClassVar[str] = "librechat"
    shape: ClassVar[str] = "{conversationId, messages | messagesTree: [{messageId, parentMessageId, feedback}]}"

    example: ClassVar = (
        {
            "conversationId": "c1",
            "messages": [
                {"messageId": "m1", "parentMessageId": "", "isCreatedByUser": True, "text": "How long does tea take?"},
                {
                    "messageId": "m2",
                    "parentMessageId": "m1",
                    "isCreatedByUser": False,
                    "text": "Three minutes.",
                    "feedback": {"rating": "thumbsUp"},
                },
            ],
        },
    )

    def matches(self, row: Mapping[str, Any]) -> bool:
        messages = row.get("messages") or row.get("messagesTree")
        first = messages[0] if isinstance(messages, list) else None
        return "conversationId" in row and isinstance(first, Mapping) and "messageId" in first

    def read(self, row: Mapping[str, Any], origin: str, source: SourceConfig) -> Iterable[Reading | Dropped]:
        messages = {str(message["messageId"]): message for message in _flat(row.get("messages") or row["messagesTree"])}
        answers = [message for message in messages.values() if not message.get("isCreatedByUser")]
        rated = [message for message in answers if (message.get("feedback") or {}).get("rating") in THUMBS]
        if not rated:
            yield Dropped("unrated", origin)
        for message in rated:
            if message.get("error") or message.get("unfinished"):
                yield Dropped("broken_answer", origin)
                continue
            desirable = THUMBS[message["feedback"]["rating"]]
            prompt, response = _above(message, messages, row), ({"role": "assistant", "content": _text(message)},)
            yield Reading(LabelledResponse(prompt, response, desirable, origin=origin))


def _flat(messages: Iterable[Message]) -> Iterator[Message]:
    """Yield the messages of a list and of the branches below them."""
    for message in messages:
        yield message
        yield from _flat(message.get("children") or ())


def _above(message: Message, messages: Mapping[str, Message], row: Mapping[str, Any]) -> Conversation:
    """Return the conversation's instructions and the turns before a message."""
    turns: list[dict[str, str]] = []
    seen = {message["messageId"]}
    while (message := messages.get(str(message.get("parentMessageId")), {})) and message["messageId"] not in seen:
        seen.add(message["messageId"])
        turns.insert(0, {"role": "user" if message.get("isCreatedByUser") else "assistant", "content": _text(message)})
    if not turns or turns[-1]["role"] != "user":
        raise BadRow("missing_message", "a rated message has no user message before it")
    instructions = (row.get("options") or {}).get("promptPrefix")
    return tuple([{"role": "system", "content": instructions}] if instructions else []) + tuple(turns)


def _text(message: Message) -> str:
    """Return the text of a message. Agents and newer endpoints store it in parts."""
    parts = [part for part in message.get("content") or () if part.get("type") == "text"]
    texts = [part["text"]["value"] if isinstance(part["text"], Mapping) else part["text"] for part in parts]
    text = message.get("text") or "".join(texts)
    if not text.strip():
        raise BadRow("empty_message", f"message {message['messageId']} has no text")
    return str(text)


@hookimpl
def alignment_formats() -> list[type[RecordFormat]]:
    return [LibreChat]
