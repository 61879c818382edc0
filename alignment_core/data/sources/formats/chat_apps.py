"""Exports of chat applications with thumbs up and down: Open WebUI, Gradio, and turn-by-turn ratings (FeeL)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from alignment_core.config import SourceConfig
from alignment_core.data.sources.parsing import shapes
from alignment_core.data.sources.parsing.judgments import labelled_response, ordered_pairs
from alignment_core.records import Conversation, LabelledResponse
from alignment_core.records.format import TURN_KEYS, BadRow, Dropped, Fields, Outcome, Reading, RecordFormat
from alignment_core.records.raters import seconds


class OpenWebUI(RecordFormat):
    """Open WebUI's feedback export: a rating with a snapshot of its chat.

    Arena votes become pairs, and thumbs become labelled responses.
    """

    name: ClassVar[str] = "open_webui"
    shape: ClassVar[str] = "{type: rating, data: {rating}, meta: {message_id}, snapshot: {chat}}"

    def matches(self, row: Fields) -> bool:
        return all(isinstance(row.get(name), Mapping) for name in ("data", "meta")) and "snapshot" in row

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        data, meta = row["data"], row["meta"]
        if not isinstance(row["snapshot"], Mapping):
            raise BadRow("missing_message", "the export has no snapshot of the chat")
        messages = _history(row["snapshot"])
        target = messages.get(str(meta.get("message_id")))
        if target is None:
            raise BadRow("missing_message", f"message {meta.get('message_id')!r} is not in the snapshot")
        context = _context(target, messages, row["snapshot"])
        response = shapes.completion(_app_message(target), "response")
        voter, when = str(row.get("user_id", "")) or None, shapes.number(row.get("updated_at"), "updated_at") or 0.0
        rating = _thumb(data.get("rating"))
        if meta.get("arena"):
            found = self._arena(context, response, target, messages, rating, origin, source, voter, when)
        else:
            found = self._thumb(context, response, rating, data, origin, source, voter, when)
        first = next((turn["content"] for turn in context if turn["role"] != "system"), "")
        chat = f"{meta.get('chat_id') or ''}\n{first}"
        yield from (replace(item, conversation=chat) if isinstance(item, Reading) else item for item in found)

    def _thumb(
        self, context: Conversation, response: Conversation, rating: int, data: Fields, origin: str,
        source: SourceConfig, voter: str | None, when: float,
    ) -> Iterator[Outcome]:  # fmt: skip
        """Convert a thumb or a scalar rating."""
        if rating:
            yield Reading(LabelledResponse(context, response, rating > 0, 1.0, origin), voter, when)
        elif score := _scalar(data):
            yield labelled_response(context, response, score, origin, source, voter, when)
        else:
            yield Dropped("neutral", origin)

    def _arena(
        self, context: Conversation, response: Conversation, target: Fields, messages: Mapping[str, Fields],
        rating: int, origin: str, source: SourceConfig, voter: str | None, when: float,
    ) -> Iterator[Outcome]:  # fmt: skip
        """Convert a vote for or against one of the responses to the same prompt."""
        if not rating:
            yield Dropped("neutral", origin)
            return
        parent = messages.get(str(target.get("parentId")), {})
        siblings = [messages[child] for child in parent.get("childrenIds") or () if child in messages]
        others = [other for other in siblings if other is not target and other.get("role") == "assistant"]
        if not others:
            raise BadRow("missing_message", "the other response of the arena vote is not in the snapshot")
        if rating < 0 and len(others) > 1:
            yield Dropped("ambiguous_arena_vote", origin)
            return
        for other in others:
            judged = [(response, float(rating)), (shapes.completion(_app_message(other), "sibling"), -float(rating))]
            yield from ordered_pairs(context, judged, origin, source, voter=voter, when=when)


class Gradio(RecordFormat):
    """Gradio's flagged CSV: a conversation with the index of the flagged response, or a prompt and a response."""

    name: ClassVar[str] = "gradio"
    shape: ClassVar[str] = "conversation, index, value, flag, timestamp (or two columns, flag, timestamp)"

    unused: ClassVar[frozenset[str]] = frozenset({"value"})  # the text of the flagged message

    OWN: ClassVar = ("conversation", "index", "value", "flag", "username", "timestamp")

    def matches(self, row: Fields) -> bool:
        return {"flag", "timestamp"} <= set(row) and ("conversation" in row or len(self._columns(row)) >= 2)

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        flag = str(row["flag"] or "")
        try:
            desirable = shapes.label(flag, "flag", source.desirable)
        except BadRow:
            yield Dropped("other_flag", origin)
            return
        if desirable is None:
            yield Dropped("no_label", origin)
            return
        context, response = self._exchange(row)
        record = LabelledResponse(context, response, desirable, 1.0, origin)
        yield Reading(record, str(row.get("username") or "") or None, seconds(row["timestamp"]))

    def _exchange(self, row: Fields) -> tuple[Conversation, Conversation]:
        if "conversation" not in row:
            columns = self._columns(row)
            if len(columns) != 2:
                raise BadRow(
                    "ambiguous_columns",
                    f"prompt and response could be any of {', '.join(columns)}. Map them with data.sources[].columns",
                )
            question, answer = columns
            return shapes.prompt(row[question], question), shapes.completion(row[answer], answer)
        turns = _parsed(row["conversation"], "conversation")
        index = _parsed(row["index"], "index")
        if turns and isinstance(turns[0], list):
            turns, index = _from_tuples(turns), 2 * index[0] + index[1] if isinstance(index, list) else 2 * index + 1
        messages = shapes.conversation(turns, "conversation")
        index = index[0] if isinstance(index, list) and index else index
        if not isinstance(index, int) or not 0 <= index < len(messages):
            raise BadRow("missing_message", f"index {index!r} is outside the conversation (length {len(messages)})")
        return messages[:index], shapes.completion([messages[index]], "conversation")

    def _columns(self, row: Fields) -> list[str]:
        return [str(name) for name in row if name not in self.OWN]


class RatedTurns(RecordFormat):
    """A conversation with ratings on individual responses: 1, 0 (neutral) or -1."""

    name: ClassVar[str] = "rated_turns"
    shape: ClassVar[str] = "{conversation: [{role, content, rating: -1|0|1}]}"
    turn_keys: ClassVar[frozenset[str]] = TURN_KEYS | {"rating"}

    def matches(self, row: Fields) -> bool:
        turns = row.get("conversation")
        return isinstance(turns, list) and any(isinstance(turn, Mapping) and "rating" in turn for turn in turns)

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        messages = shapes.conversation(row["conversation"], "conversation")
        rated = [
            index
            for index, turn in enumerate(row["conversation"])
            if turn.get("rating") is not None and messages[index]["role"] == "assistant"
        ]
        if not rated:
            yield Dropped("unrated", origin)
        whole = "\n".join(message["content"] for message in messages)
        for index in rated:
            rating = _thumb(row["conversation"][index]["rating"])
            if rating:
                response = shapes.completion([messages[index]], f"conversation[{index}]")
                record = LabelledResponse(messages[:index], response, rating > 0, 1.0, origin)
                yield Reading(record, conversation=whole)
            else:
                yield Dropped("neutral", origin)


def _history(snapshot: Fields) -> Mapping[str, Fields]:
    """Return the snapshot's messages by id, from a map or a list."""
    chat: Any = snapshot
    for name in ("chat", "chat", "history", "messages"):
        chat = chat.get(name, chat if name == "chat" else None) if isinstance(chat, Mapping) else chat
    if isinstance(chat, list):
        chat = {str(message.get("id")): message for message in chat if isinstance(message, Mapping)}
    if not isinstance(chat, Mapping):
        raise BadRow("missing_message", "the snapshot has no messages")
    return {str(key): message for key, message in chat.items() if isinstance(message, Mapping)}


def _context(target: Fields, messages: Mapping[str, Fields], snapshot: Fields) -> Conversation:
    """Return the turns before a message by following `parentId`."""
    above: list[Any] = []
    seen = {id(target)}
    parent = target.get("parentId")
    while parent is not None:
        message = messages.get(str(parent))
        if message is None:
            raise BadRow("orphaned_message", f"the parent {parent!r} is not in the snapshot")
        if id(message) in seen:
            raise BadRow("cyclic_tree", f"message {parent!r} is its own ancestor")
        seen.add(id(message))
        above.append(_app_message(message))
        parent = message.get("parentId")
    if not above:
        raise BadRow("orphaned_message", "the rated message has no parent")
    return (*_system(snapshot), *shapes.conversation(above[::-1], "history"))


def _system(snapshot: Fields) -> Conversation:
    chat = snapshot.get("chat")
    inner = chat.get("chat", chat) if isinstance(chat, Mapping) else {}
    params = inner.get("params") if isinstance(inner, Mapping) else None
    system = params.get("system") if isinstance(params, Mapping) else None
    return (shapes.turn("system", system, "system", "empty_prompt"),) if system else ()


def _app_message(message: Fields) -> dict[str, Any]:
    return {"role": message.get("role"), "content": message.get("content")}


def _thumb(value: Any) -> int:
    """Return -1, 0 or 1 from a number or its text."""
    number = shapes.number(value, "rating")
    if number in (-1, 0, 1, None):
        return int(number or 0)
    raise BadRow("rating_out_of_range", f"rating is {value!r}, expected -1, 0 or 1")


def _scalar(data: Fields) -> float | None:
    details = data.get("details")
    return shapes.number(details.get("rating"), "details.rating") if isinstance(details, Mapping) else None


def _parsed(value: Any, field: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadRow("invalid_json", f"{field} is not valid JSON") from None


def _from_tuples(turns: list[Any]) -> list[dict[str, Any]]:
    """Convert Gradio's older [[question, answer], …] to messages."""
    return [
        {"role": role, "content": text}
        for turn in turns
        if isinstance(turn, list)
        for role, text in zip(("user", "assistant"), turn, strict=False)
    ]
