"""ChatGPT's data export: `conversations.json`, in which every chat is a tree of messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from alignment_core.config import SourceConfig
from alignment_core.data.sources.formats.standard import demonstrations
from alignment_core.data.sources.parsing import shapes
from alignment_core.records.format import BadRow, Dropped, Fields, Outcome, RecordFormat

SETTINGS = ("user_profile", "user_instructions")
"""What a person has told ChatGPT about answers to all questions: parts of a message of its own kind."""


class ChatGPT(RecordFormat):
    """A chat of ChatGPT's data export, as it was shown last. Custom instructions become the system prompt."""

    name: ClassVar[str] = "chatgpt"
    shape: ClassVar[str] = "{mapping: {id: {message, parent, children}}, current_node}"
    unused: ClassVar[frozenset[str]] = frozenset({
        "title", "create_time", "update_time", "moderation_results", "plugin_ids", "conversation_id", "is_archived",
        "is_starred", "safe_urls", "blocked_urls", "default_model_slug", "conversation_template_id", "memory_scope",
        "conversation_origin", "voice", "async_status", "disabled_tool_ids",
    })  # fmt: skip

    def matches(self, row: Fields) -> bool:
        return isinstance(row.get("mapping"), Mapping) and "current_node" in row

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        nodes: Mapping[str, Any] = row["mapping"]
        shown = _shown(nodes, row["current_node"])
        turns = [turn for key in shown if (turn := _turn(_message(nodes[key]))) is not None]
        yield from demonstrations(shapes.conversation(_one_system_prompt(turns), "mapping"), "mapping", origin)
        others = (_message(node) for key, node in nodes.items() if key not in shown)
        yield from (Dropped("answer_of_another_branch", origin) for other in others if _role(other) == "assistant")


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
