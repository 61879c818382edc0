"""Hugging Face's standard columns, and the column map that makes any other table look like them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from alignment_core.config import SourceConfig
from alignment_core.data.formats import shapes
from alignment_core.data.formats.comparing import pair, rater, thumb
from alignment_core.record_format import BadRow, Dropped, Fields, Outcome, Reading, RecordFormat
from alignment_core.records import Conversation, Demonstration, LabelledResponse, Prompt

PROMPT_NAMES = ("prompt", "question", "query", "instruction")
COMPLETION_NAMES = ("completion", "response", "answer", "output")
ANSWERED = re.compile("complet|respon|answer|output|chosen|reject|repl(y|ies)|generat|label|rating|score|rank")
"""Words in the names of columns that are not about a question alone."""


class Pairs(RecordFormat):
    """`{prompt, chosen, rejected}` of texts or messages, with an optional margin or scores.

    Sides that are whole conversations (UltraFeedback repeats the prompt in them) are parted where they differ.
    """

    name: ClassVar[str] = "pairs"
    shape: ClassVar[str] = "{prompt?, chosen, rejected} or {chosen_messages, rejected_messages}"

    def matches(self, row: Fields) -> bool:
        return ("chosen" in row and "rejected" in row) or ("chosen_messages" in row and "rejected_messages" in row)

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        margin = _margin(row)
        chosen, rejected = (row.get(side, row.get(f"{side}_messages")) for side in ("chosen", "rejected"))
        asked = _first(row, PROMPT_NAMES)
        sides_are_whole = (
            shapes.is_messages(chosen) and shapes.is_messages(rejected) and not _starts_with_answer(chosen)
        )
        if asked is None and isinstance(chosen, str) and isinstance(rejected, str):
            yield Reading(pair(*_parted_texts(chosen, rejected), margin, origin))
            return
        if asked is None or sides_are_whole:
            if not sides_are_whole:
                raise BadRow("empty_prompt", "no prompt column, and chosen and rejected are not whole conversations")
            whole = shapes.conversation(chosen, "chosen"), shapes.conversation(rejected, "rejected")
            yield Reading(pair(*shapes.common_prefix(*whole), margin, origin))
            return
        prompt = shapes.prompt(row[asked], asked, row.get("system"))
        sides = [shapes.completion(value, side) for side, value in (("chosen", chosen), ("rejected", rejected))]
        yield Reading(pair(prompt, sides[0], sides[1], margin, origin))


class Labelled(RecordFormat):
    """`{prompt, completion, label}` or `{messages, label}`."""

    name: ClassVar[str] = "labelled"
    shape: ClassVar[str] = "{prompt, completion, label} or {messages, label}"

    def matches(self, row: Fields) -> bool:
        return "label" in row and ("messages" in row or _is_exchange(row))

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        if "messages" in row:
            prompt, response = shapes.split_last_turn(shapes.conversation(row["messages"], "messages"), "messages")
        else:
            prompt, response = _exchange(row)
        desirable = shapes.label(row["label"], desirable=source.desirable)
        if desirable is None:
            yield Dropped("no_label", origin)
            return
        yield Reading(LabelledResponse(prompt, response, desirable, 1.0, origin), *rater(row))


class Rated(RecordFormat):
    """`{prompt, completion, rating}`: a scalar that `threshold` turns into a thumb."""

    name: ClassVar[str] = "rated"
    shape: ClassVar[str] = "{prompt, completion, rating}"

    def matches(self, row: Fields) -> bool:
        return "rating" in row and _is_exchange(row)

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        prompt, response = _exchange(row)
        rating = shapes.number(row["rating"], "rating")
        if rating is None:
            yield Dropped("no_label", origin)
            return
        yield thumb(prompt, response, rating, origin, source)


class Demonstrations(RecordFormat):
    """`{messages}`, `{prompt, completion}` or `{text}`."""

    name: ClassVar[str] = "demonstrations"
    shape: ClassVar[str] = "{messages}, {prompt, completion} or {text}"

    def matches(self, row: Fields) -> bool:
        if any(judged.matches(row) for judged in (Pairs(), Labelled(), Rated())):
            return False  # what people disliked is nothing to imitate
        return "messages" in row or _is_exchange(row) or ("text" in row and "role" not in row)

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        if "messages" in row:
            yield from demonstrations(shapes.conversation(row["messages"], "messages"), "messages", origin)
            return
        if _is_exchange(row):
            prompt, completion = _exchange(row)
            messages = (*prompt, *completion)
        else:
            messages = (shapes.turn("assistant", row["text"], "text", "empty_completion"),)
        yield Reading(Demonstration(messages, origin))


class Prompts(RecordFormat):
    """`{prompt}`: questions without an answer."""

    name: ClassVar[str] = "prompts"
    shape: ClassVar[str] = "{prompt}"

    def matches(self, row: Fields) -> bool:
        return "prompt" in row and not any(ANSWERED.search(str(name).lower()) for name in row)

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        yield Reading(Prompt(shapes.prompt(row["prompt"], system=row.get("system")), origin))


def demonstrations(messages: Conversation, field: str, origin: str) -> Iterable[Outcome]:
    """A conversation up to its last assistant turn, and, where a user's turn follows, as a prompt as well.

    Raises:
        BadRow: it has no assistant turn, or the last one says nothing.
    """
    prompt, last = shapes.split_last_turn(messages, field)
    yield Reading(Demonstration((*prompt, *last), origin))
    if messages[-1]["role"] == "user":
        yield Reading(Prompt(messages, origin))


def _first(row: Fields, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _is_exchange(row: Fields) -> bool:
    """A prompt and a completion under usual names, or a completion and no column that may be its prompt."""
    if _first(row, PROMPT_NAMES):
        return _first(row, COMPLETION_NAMES) is not None
    return "completion" in row and set(row) <= {"completion", "label", "rating"}


def _exchange(row: Fields) -> tuple[Conversation, Conversation]:
    asked, answered = _first(row, PROMPT_NAMES), _first(row, COMPLETION_NAMES)
    assert answered is not None
    prompt = () if asked is None else shapes.prompt(row[asked], asked, row.get("system"))
    return prompt, shapes.completion(row[answered], answered)


def _parted_texts(chosen: str, rejected: str) -> tuple[Conversation, Conversation, Conversation]:
    """The words that two texts both start with, and the rest of each.

    Raises:
        BadRow: they are the same, start differently, or one ends where the other goes on.
    """
    if chosen == rejected:
        raise BadRow("identical_completions", "chosen and rejected are the same")
    pairs = enumerate(zip(chosen, rejected, strict=False))
    same = next((place for place, (first, second) in pairs if first != second), min(len(chosen), len(rejected)))
    start = max(chosen.rfind(" ", 0, same), chosen.rfind("\n", 0, same)) + 1
    if not chosen[:start].strip():
        raise BadRow("empty_prompt", "no prompt column, and chosen and rejected do not start alike")
    prompt = shapes.prompt(chosen[:start].rstrip(), "the start of chosen and rejected")
    return prompt, shapes.completion(chosen[start:], "chosen"), shapes.completion(rejected[start:], "rejected")


def _starts_with_answer(messages: Any) -> bool:
    role = messages[0].get("role", messages[0].get("from"))
    return isinstance(role, str) and shapes.ROLES.get(role.lower()) == "assistant"


def _margin(row: Fields) -> float | None:
    if "margin" in row:
        return shapes.number(row["margin"], "margin")
    if "score_chosen" in row and "score_rejected" in row:
        chosen = shapes.number(row["score_chosen"], "score_chosen")
        rejected = shapes.number(row["score_rejected"], "score_rejected")
        return None if chosen is None or rejected is None else chosen - rejected
    return None
