"""OpenAssistant: conversation trees with ranked and labelled replies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from alignment_core.config import SourceConfig
from alignment_core.data.sources.parsing import shapes
from alignment_core.data.sources.parsing.grouping import Groups
from alignment_core.data.sources.parsing.judgments import ordered_pairs
from alignment_core.data.sources.parsing.turns import ROLES
from alignment_core.data.sources.readers import RawRow
from alignment_core.records import Conversation, Demonstration, LabelledResponse, Prompt
from alignment_core.records.format import (
    BadRow,
    Dropped,
    Fields,
    Outcome,
    Quarantined,
    Reading,
    RecordFormat,
    unread_besides,
)

COLUMNS = frozenset({
    "message_id", "parent_id", "message_tree_id", "text", "role", "rank", "emojis", "deleted", "review_result",
    "synthetic", "labels", "detoxify", "tree_state",
})  # fmt: skip
"""Columns of a message that are read, or that change nothing."""


@dataclass
class _Node:
    """One message of a tree."""

    id: str
    parent: str | None
    role: str
    turn: Conversation
    rank: float | None
    thumbs: int
    origin: str
    replies: list[_Node] = field(default_factory=list)


class AssistantTree(RecordFormat):
    """One complete tree per row: a prompt with nested replies."""

    name: ClassVar[str] = "openassistant_trees"
    shape: ClassVar[str] = "{message_tree_id, prompt: {text, role, replies: […]}}"
    unused: ClassVar[frozenset[str]] = frozenset({"tree_state"})

    def matches(self, row: Fields) -> bool:
        prompt = row.get("prompt")
        return isinstance(prompt, Mapping) and "text" in prompt and "replies" in prompt

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        waiting: list[tuple[Any, _Node | None]] = [(row["prompt"], None)]
        nodes: list[_Node] = []
        while waiting:
            value, parent = waiting.pop()
            try:
                if not isinstance(value, Mapping):
                    raise BadRow("not_an_object", f"a reply has type {type(value).__name__}, expected an object")
                if dropped := _dropped(value, origin):
                    yield dropped
                    continue
                node = _node(value, origin)
            except BadRow as bad:
                yield Quarantined(origin, bad.reason, bad.detail, value)
                continue
            nodes.append(node)
            if parent is not None:
                parent.replies.append(node)
            replies = value.get("replies") or []
            waiting += [(reply, node) for reply in reversed(replies if isinstance(replies, list) else [])]
        if nodes:
            yield from _tree(nodes[0], source)


class AssistantMessages(RecordFormat):
    """One message per row with the id of its parent. The rows of a tree may be anywhere in the file."""

    name: ClassVar[str] = "openassistant_messages"
    shape: ClassVar[str] = "{message_id, parent_id, role: prompter|assistant, text, rank, emojis}"

    def matches(self, row: Fields) -> bool:
        return {"message_id", "parent_id", "text", "role"} <= set(row)

    def records(self, rows: Iterable[RawRow], source: SourceConfig) -> Iterator[Outcome]:
        with Groups() as trees:
            for row in rows:
                if not isinstance(row.value, Mapping) or not self.matches(row.value):
                    yield Quarantined(row.origin, "other_format", f"the row does not match {self.shape}", row.value)
                else:
                    trees.add(str(row.value.get("message_tree_id")), row.origin, dict(row.value))
                    yield from unread_besides(COLUMNS, row)
            for _, messages in trees:
                yield from self._tree(messages, source)

    def _tree(self, messages: list[tuple[str, Any]], source: SourceConfig) -> Iterator[Outcome]:
        nodes: dict[str, _Node] = {}
        values: dict[str, Any] = {}
        gone: set[str] = set()
        for origin, value in messages:
            if dropped := _dropped(value, origin):
                gone.add(str(value["message_id"]))
                yield dropped
                continue
            try:
                node = _node(value, origin)
                if node.id in nodes:
                    raise BadRow("duplicate_message", f"message_id {node.id} occurs twice in its tree")
            except BadRow as bad:
                yield Quarantined(origin, bad.reason, bad.detail, value)
                continue
            nodes[node.id], values[node.id] = node, value
        roots = []
        for node in nodes.values():
            if node.parent is None:
                roots.append(node)
            elif node.parent in nodes:
                nodes[node.parent].replies.append(node)
        reached = {id(node) for root in roots for node, _ in _walk(root)}
        for node in nodes.values():
            if id(node) in reached:
                continue
            if _top(node, nodes) in gone:
                yield Dropped("below_dropped_message", node.origin)
            else:
                detail = f"message {node.id} is not connected to its root: a parent is missing, or there is a cycle"
                yield Quarantined(node.origin, "orphaned_message", detail, values[node.id])
        for root in roots:
            yield from _tree(root, source)


def _top(node: _Node, nodes: Mapping[str, _Node]) -> str | None:
    """Return the id of the missing ancestor of `node`, or None for a root or a cycle."""
    seen: set[str] = set()
    while node.id not in seen and node.parent is not None:
        if node.parent not in nodes:
            return node.parent
        seen.add(node.id)
        node = nodes[node.parent]
    return None


def _dropped(value: Fields, origin: str) -> Dropped | None:
    if value.get("deleted"):
        return Dropped("deleted", origin)
    return Dropped("failed_review", origin) if value.get("review_result") is False else None


def _node(value: Fields, origin: str) -> _Node:
    role = ROLES.get(str(value.get("role")).lower())
    if role not in ("user", "assistant"):
        raise BadRow("unknown_role", f"role is {value.get('role')!r}, expected prompter or assistant")
    parent = value.get("parent_id")
    return _Node(
        id=str(value.get("message_id")),
        parent=None if parent is None else str(parent),
        role=role,
        turn=(shapes.turn(role, value.get("text"), "text", "empty_turn"),),
        rank=shapes.number(value.get("rank"), "rank"),
        thumbs=_thumbs(value.get("emojis")),
        origin=origin,
    )


def _thumbs(emojis: Any) -> int:
    """Return thumbs up minus thumbs down, from `{"+1": n}` or `{name: […], count: […]}`."""
    if not isinstance(emojis, Mapping):
        return 0
    names, counts = emojis.get("name"), emojis.get("count")
    given = dict(zip(names, counts, strict=False)) if isinstance(names, list) and isinstance(counts, list) else emojis
    up, down = (given.get(name, 0) for name in ("+1", "-1"))
    if not isinstance(up, int) or not isinstance(down, int):
        raise BadRow("bad_number", f"the emoji counts are {up!r} and {down!r}, expected integers")
    return up - down


def _walk(root: _Node) -> Iterator[tuple[_Node, Conversation]]:
    """Yield `root` and every message below it, each with the turns before it."""
    waiting: list[tuple[_Node, Conversation]] = [(root, ())]
    while waiting:
        node, before = waiting.pop()
        yield node, before
        waiting += [(reply, (*before, *node.turn)) for reply in reversed(node.replies)]


def _tree(root: _Node, source: SourceConfig) -> Iterator[Outcome]:
    """Yield ranked siblings as pairs, best paths as demonstrations, emojis as labels, open questions as prompts.

    They are one conversation, whose text is the root.
    """
    whole = root.turn[0]["content"]
    for outcome in (*_judged(root, source), *_best_paths(root)):
        yield replace(outcome, conversation=whole) if isinstance(outcome, Reading) else outcome


def _judged(root: _Node, source: SourceConfig) -> Iterator[Outcome]:
    for node, before in _walk(root):
        here = (*before, *node.turn)
        answers = [reply for reply in node.replies if reply.role == "assistant"]
        ranked = [(reply.turn, -reply.rank) for reply in answers if reply.rank is not None]
        yield from ordered_pairs(here, ranked, node.origin, source)
        if node.role == "user" and not answers:
            yield Reading(Prompt(here, node.origin))
        if node.role == "assistant" and node.thumbs:
            yield Reading(LabelledResponse(before, node.turn, node.thumbs > 0, 1.0, node.origin))


def _best_paths(root: _Node) -> Iterator[Outcome]:
    """Yield the conversations that follow the best-ranked answer at every turn, down to the last answer."""
    waiting: list[tuple[_Node, Conversation]] = [(root, ())]
    while waiting:
        node, before = waiting.pop()
        here = (*before, *node.turn)
        best = node.replies
        if node.role == "user":
            answers = [reply for reply in node.replies if reply.role == "assistant"]
            best = sorted(answers, key=lambda reply: float("inf") if reply.rank is None else reply.rank)[:1]
        elif not any(_answered(reply) for reply in node.replies):
            yield Reading(Demonstration(here, node.origin))
            continue
        waiting += [(reply, here) for reply in reversed(best)]


def _answered(node: _Node) -> bool:
    return node.role == "user" and any(reply.role == "assistant" for reply in node.replies)
