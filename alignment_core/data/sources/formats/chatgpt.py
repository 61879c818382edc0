"""ChatGPT's data export: every chat of `conversations.json` is a tree of messages, rated in `message_feedback.json`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from alignment_core.config import SourceConfig
from alignment_core.data.sources.formats.standard import demonstrations
from alignment_core.data.sources.parsing import shapes
from alignment_core.data.sources.parsing.grouping import Groups
from alignment_core.records import Conversation, LabelledResponse, RawRow
from alignment_core.records.format import BadRow, Dropped, Fields, Outcome, Quarantined, Reading, RecordFormat

SETTINGS = ("user_profile", "user_instructions")
"""What a person has told ChatGPT about answers to all questions: parts of a message of its own kind."""


RATINGS = "message_feedback"
"""Column of a chat with the rows of `message_feedback.json` that rate its messages, once they are joined."""


class ChatGPT(RecordFormat):
    """A chat of ChatGPT's data export, as it was shown last. Custom instructions become the system prompt.

    Thumbs are joined to the answers that they rate. Of a chat with thumbs, only the rated answers are used.
    """

    name: ClassVar[str] = "chatgpt"
    shape: ClassVar[str] = "{mapping: {id: {message, parent, children}}, current_node}; {message_id, user_id, rating}"
    whole_source: ClassVar[bool] = True
    unused: ClassVar[frozenset[str]] = frozenset({
        "title", "create_time", "update_time", "moderation_results", "plugin_ids", "conversation_id", "id",
        "is_archived", "is_starred", "safe_urls", "blocked_urls", "default_model_slug", "conversation_template_id",
        "memory_scope", "conversation_origin", "voice", "async_status", "disabled_tool_ids",
    })  # fmt: skip

    def matches(self, row: Fields) -> bool:
        return _is_chat(row) or {"message_id", "user_id", "rating"} <= set(row)

    def records(self, rows: Iterable[RawRow], source: SourceConfig) -> Iterator[Outcome]:
        with Groups() as chats, Groups() as ratings:
            named = set[str]()
            for row in rows:
                if not isinstance(row.value, Mapping) or not self.matches(row.value):
                    yield from self.outcomes(row, source)  # the error
                elif _is_chat(row.value):
                    chat = _chat_id(row.value)
                    named.add(chat)
                    chats.add(row.origin, row.origin, dict(row.value))
                    for message in row.value["mapping"]:
                        chats.rename(f"{chat}\n{message}", row.origin)
                else:
                    ratings.add("", row.origin, dict(row.value))
            for _, origin, rating in ratings.rows():
                chat = _chat_id(rating)  # early exports do not name their chats, and the ids of messages are unique
                chats.add(f"{chat if chat in named else ''}\n{rating['message_id']}", origin, rating)
            for _, found in chats:
                yield from self._joined(found, source)

    def _joined(self, rows: list[tuple[str, Any]], source: SourceConfig) -> Iterator[Outcome]:
        """Yield the outcomes of a chat and its ratings, or the errors of ratings without one."""
        ratings = [(origin, row) for origin, row in rows if not _is_chat(row)]
        chat = next(((origin, row) for origin, row in rows if _is_chat(row)), None)
        if chat is None:
            detail = "no chat of the source has this message. Read the whole export: its folder or its archive"
            yield from (Quarantined(origin, "orphaned_rating", detail, row) for origin, row in ratings)
            return
        joined = {RATINGS: [row for _, row in ratings]} if ratings else {}
        yield from self.outcomes(RawRow({**chat[1], **joined}, chat[0]), source)

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        if not _is_chat(row):
            raise BadRow("orphaned_rating", "a rating without its chat")
        nodes: Mapping[str, Any] = row["mapping"]
        shown, ratings = _shown(nodes, row["current_node"]), row.get(RATINGS) or []
        if ratings:
            for rating in ratings:
                yield _rated(nodes, rating, origin, source)
            used, reason = {str(rating["message_id"]) for rating in ratings}, "answer_without_rating"
        else:
            yield from demonstrations(_conversation(nodes, shown), "mapping", origin)
            used, reason = set(shown), "answer_of_another_branch"
        others = (_message(node) for key, node in nodes.items() if key not in used)
        yield from (Dropped(reason, origin) for other in others if _role(other) == "assistant")


def _is_chat(row: Fields) -> bool:
    return isinstance(row.get("mapping"), Mapping) and "current_node" in row


def _chat_id(row: Fields) -> str:
    return str(row.get("conversation_id") or row.get("id") or "")


def _rated(nodes: Mapping[str, Any], rating: Fields, origin: str, source: SourceConfig) -> Outcome:
    """Return a rated answer, the reason why a rating says nothing, or the error of one that cannot be used."""
    answer = str(rating["message_id"])
    try:
        desirable = shapes.label(rating.get("rating"), "rating", source.desirable)
        if desirable is None:
            return Dropped("no_label", origin)
        turns = _conversation(nodes, _shown(nodes, answer))
        if _role(_message(nodes[answer])) != "assistant" or len(turns) < 2:
            raise BadRow("missing_message", f"message {answer!r} is no answer to anything")
        record = LabelledResponse(turns[:-1], shapes.completion(list(turns[-1:]), "mapping"), desirable, 1.0, origin)
    except BadRow as bad:
        return Quarantined(
            origin, bad.reason, bad.detail, {"mapping": nodes, "current_node": answer, RATINGS: [rating]}
        )
    first = next((turn["content"] for turn in turns if turn["role"] != "system"), "")
    return Reading(record, str(rating.get("user_id") or "") or None, conversation=first)


def _conversation(nodes: Mapping[str, Any], path: Iterable[str]) -> Conversation:
    turns = [turn for key in path if (turn := _turn(_message(nodes[key]))) is not None]
    return shapes.conversation(_one_system_prompt(turns), "mapping")


def _shown(nodes: Mapping[str, Any], last: Any) -> list[str]:
    """Return the ids of the messages from the first to the last one that was shown."""
    path: list[str] = []
    while last is not None:
        node = nodes.get(str(last))
        if not isinstance(node, Mapping):
            raise BadRow("orphaned_message", f"message {last!r} is not in the chat")
        if str(last) in path:
            raise BadRow("cyclic_tree", f"message {last!r} is its own ancestor")
        path.append(str(last))
        last = node.get("parent")
    return path[::-1]


def _message(node: Any) -> Fields:
    message = node.get("message") if isinstance(node, Mapping) else None
    return message if isinstance(message, Mapping) else {}


def _role(message: Fields) -> str:
    author = message.get("author")
    return str(author.get("role")) if isinstance(author, Mapping) else ""


def _content(message: Fields) -> Fields:
    content = message.get("content")
    return content if isinstance(content, Mapping) else {}


def _text(message: Fields) -> str:
    """Return the text of a message. Pictures and the like are an error.

    Raises:
        BadRow: the message has other parts than text.
    """
    parts = _content(message).get("parts")
    parts = parts if isinstance(parts, list) else []
    if other := next((part for part in parts if not isinstance(part, str)), None):
        kind = other.get("content_type") if isinstance(other, Mapping) else type(other).__name__
        raise BadRow("not_text", f"a message has a part of the type {kind}, and only text can be learned")
    return "\n".join(parts)


def _turn(message: Fields) -> dict[str, Any] | None:
    """Return a message as a turn, or None if it is empty.

    Raises:
        BadRow: it is the call or the answer of a tool, a thought, or no text.
    """
    role, content = _role(message), _content(message)
    kind = content.get("content_type")
    if kind == "user_editable_context":
        told = [str(content[name]) for name in SETTINGS if content.get(name)]
        return {"role": "system", "content": "\n\n".join(told)} if told else None
    text = _text(message)
    if not text.strip() and kind in ("text", None) and role != "tool":
        return None
    if role == "tool" or message.get("recipient") not in ("all", None):
        raise BadRow("uses_tools", "the chat uses a tool of ChatGPT, whose calls cannot be learned")
    if kind not in ("text", "multimodal_text"):
        raise BadRow("not_text", f"a message has the type {kind}, and only text can be learned")
    return {"role": role, "content": text}


def _one_system_prompt(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the turns with all system turns in one, before the others."""
    system = [turn["content"] for turn in turns if turn["role"] == "system"]
    first = [{"role": "system", "content": "\n\n".join(system)}] if system else []
    return first + [turn for turn in turns if turn["role"] != "system"]
