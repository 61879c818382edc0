"""The record formats with Hugging Face's standard columns."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, ClassVar

from alignment_core.config import SourceConfig
from alignment_core.data.sources.formats.context import PROMPT_NAMES, asked, first_of, first_pair_of, with_system
from alignment_core.data.sources.parsing import shapes
from alignment_core.data.sources.parsing.judgments import (
    RATING_NAMES,
    label_column,
    label_of,
    labelled_response,
    preference_pair,
)
from alignment_core.data.sources.parsing.turns import ROLES
from alignment_core.records import Conversation, Demonstration, LabelledResponse, Prompt
from alignment_core.records.columns import CONTEXT, is_bookkeeping, peek
from alignment_core.records.format import BadRow, Dropped, Fields, Outcome, Reading, RecordFormat, UnreadColumn
from alignment_core.texts import common_start

COMPLETION_NAMES = ("completion", "response", "answer", "output")
SIDES = (
    ("chosen", "rejected"),
    ("chosen_messages", "rejected_messages"),
    ("chosen_response", "rejected_response"),
    ("messages", "rejected_messages"),
    ("messages", "rejected_response"),
    *((name, "rejected_response") for name in COMPLETION_NAMES),
)
"""Names of the columns with the preferred and the other answer."""
MARGINS = tuple(
    names
    for what in ("score", "rating", "reward")
    for names in ((f"{what}_chosen", f"{what}_rejected"), (f"chosen_{what}", f"rejected_{what}"))
)
WRITERS = frozenset({"role", "user", "username", "author", "sender", "from", "from_id", "speaker"})
"""Columns that say who wrote a text. The messages of a group of people are not answers to imitate."""
ANSWERED = re.compile("complet|respon|answer|output|chosen|reject|repl(y|ies)|generat|label|rating|score|rank")
"""Matches names of columns that hold more than a prompt."""


class Pairs(RecordFormat):
    """A prompt with a chosen and a rejected answer, as text or messages, with an optional margin or scores.

    If both sides are complete conversations (UltraFeedback repeats the prompt in them), they are split where they
    first differ.
    """

    name: ClassVar[str] = "pairs"
    shape: ClassVar[str] = (
        "{prompt?, chosen, rejected}, {chosen_messages, rejected_messages} or {messages, rejected_response}"
    )

    def matches(self, row: Fields) -> bool:
        return _sides(row) is not None

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        names = _sides(row)
        assert names is not None
        chosen, rejected = (row[name] for name in names)
        pair = preference_pair(*_parted(row, names, chosen, rejected), _margin(row), origin)
        yield Reading(pair)


class Labelled(RecordFormat):
    """A prompt, a completion and a label, which may also be called `thumbs`, `feedback`, `is_helpful`, …."""

    name: ClassVar[str] = "labelled"
    shape: ClassVar[str] = "{prompt, completion, label} or {messages, label}"
    unused: ClassVar[frozenset[str]] = frozenset({"rater_kind", "comment"})

    def matches(self, row: Fields) -> bool:
        return label_column(row) is not None and ("messages" in row or _is_exchange(row))

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        prompt, response = _exchange(row)
        label = label_column(row)
        assert label is not None
        desirable = label_of(row, label, source)
        if desirable is None:
            yield Dropped("no_label", origin)
            return
        yield Reading(LabelledResponse(prompt, response, desirable, 1.0, origin))


class Rated(RecordFormat):
    """A prompt, a completion and a rating, which may also be called `score`, `reward`, ….

    `threshold` turns the rating into a thumbs up or down.
    """

    name: ClassVar[str] = "rated"
    shape: ClassVar[str] = "{prompt, completion, rating} or {messages, rating}"

    def matches(self, row: Fields) -> bool:
        return first_of(row, RATING_NAMES) is not None and ("messages" in row or _is_exchange(row))

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        prompt, response = _exchange(row)
        column = first_of(row, RATING_NAMES)
        assert column is not None
        rating = shapes.number(row[column], column)
        if rating is None:
            yield Dropped("no_label", origin)
            return
        yield labelled_response(prompt, response, rating, origin, source, column=column)


class Demonstrations(RecordFormat):
    """`{messages}`, `{prompt, completion}` or `{text}`."""

    name: ClassVar[str] = "demonstrations"
    shape: ClassVar[str] = "{messages}, {prompt, completion} or {text}"

    def matches(self, row: Fields) -> bool:
        if any(judged.matches(row) for judged in (Pairs(), Labelled(), Rated())):
            return False  # a disliked response must not become a demonstration
        return "messages" in row or _is_exchange(row) or ("text" in row and not WRITERS & set(row))

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        if "messages" in row:
            messages = with_system(shapes.conversation(row["messages"], "messages"), row)
            yield from demonstrations(messages, "messages", origin)
            return
        if _is_exchange(row):
            prompt, completion = _exchange(row)
            messages = (*prompt, *completion)
        else:
            messages = (shapes.turn("assistant", row["text"], "text", "empty_completion"),)
        yield Reading(Demonstration(messages, origin))


class Prompts(RecordFormat):
    """`{prompt}`: prompts without a completion."""

    name: ClassVar[str] = "prompts"
    shape: ClassVar[str] = "{prompt}"

    def matches(self, row: Fields) -> bool:
        return "prompt" in row and not any(ANSWERED.search(str(name).lower()) for name in row)

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        yield Reading(Prompt(asked(row, "prompt"), origin))


def demonstrations(messages: Conversation, field: str, origin: str) -> Iterable[Outcome]:
    """Yield a conversation up to its last assistant turn and, if it ends with a user turn, also as a prompt.

    Raises:
        BadRow: there is no assistant turn, or the last one is empty.
    """
    prompt, last = shapes.split_last_turn(messages, field)
    yield Reading(Demonstration((*prompt, *last), origin))
    if messages[-1]["role"] == "user":
        asked_before = "\n".join(turn["content"] for turn in prompt if turn["role"] != "system")
        yield Reading(Prompt(messages, origin), conversation=asked_before)


def _is_exchange(row: Fields) -> bool:
    """Whether a row has a prompt and a completion under common names, or a completion and nothing like a prompt."""
    if first_of(row, PROMPT_NAMES):
        return first_of(row, COMPLETION_NAMES) is not None
    return "completion" in row and set(row) <= {"completion", "label", "rating"}


def _exchange(row: Fields) -> tuple[Conversation, Conversation]:
    """Return the prompt and the answer of a row, from its messages or from two columns."""
    if "messages" in row:
        return shapes.split_last_turn(with_system(shapes.conversation(row["messages"], "messages"), row), "messages")
    column, answered = first_of(row, PROMPT_NAMES), first_of(row, COMPLETION_NAMES)
    assert answered is not None
    return () if column is None else asked(row, column), shapes.completion(row[answered], answered)


def _sides(row: Fields) -> tuple[str, str] | None:
    return first_pair_of(row, SIDES)


def _parted(
    row: Fields, names: tuple[str, str], chosen: Any, rejected: Any
) -> tuple[Conversation, Conversation, Conversation]:
    """Return the prompt and the two answers of a row.

    Raises:
        BadRow: there is no prompt, or the sides are not two answers to it.
    """
    column = first_of(row, PROMPT_NAMES)
    if _is_whole(chosen) and _is_whole(rejected):
        whole = [
            with_system(shapes.conversation(side, name), row)
            for side, name in zip((chosen, rejected), names, strict=True)
        ]
        return shapes.common_prefix(whole[0], whole[1])
    if names[0] == "messages":
        prompt, better = shapes.split_last_turn(with_system(shapes.conversation(chosen, "messages"), row), "messages")
        return prompt, better, shapes.completion(rejected, names[1])
    if column is not None:
        prompt = asked(row, column)
        return prompt, shapes.completion(chosen, names[0]), shapes.completion(rejected, names[1])
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise BadRow("empty_prompt", f"no prompt column, and {' and '.join(names)} are not complete conversations")
    for name in row:
        value = peek(row, name)
        if name not in names and not is_bookkeeping(str(name)) and (shapes.is_messages(value) or _is_words(value)):
            raise UnreadColumn({str(name): CONTEXT})
    return _parted_texts(chosen, rejected)


def _is_whole(side: Any) -> bool:
    return shapes.is_messages(side) and not _starts_with_answer(side)


def _is_words(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _parted_texts(chosen: str, rejected: str) -> tuple[Conversation, Conversation, Conversation]:
    """Split two texts into the words that both start with and the rest of each.

    Raises:
        BadRow: the texts are the same, start differently, or one is the start of the other.
    """
    if chosen == rejected:
        raise BadRow("identical_completions", "chosen and rejected are the same")
    same = common_start(chosen, rejected)
    start = max(chosen.rfind(" ", 0, same), chosen.rfind("\n", 0, same)) + 1
    if not chosen[:start].strip():
        raise BadRow("empty_prompt", "no prompt column, and chosen and rejected have no common start")
    prompt = shapes.prompt(chosen[:start].rstrip(), "the start of chosen and rejected")
    return prompt, shapes.completion(chosen[start:], "chosen"), shapes.completion(rejected[start:], "rejected")


def _starts_with_answer(messages: Any) -> bool:
    role = messages[0].get("role", messages[0].get("from"))
    return isinstance(role, str) and ROLES.get(role.lower()) == "assistant"


def _margin(row: Fields) -> float | None:
    if "margin" in row:
        return shapes.number(row["margin"], "margin")
    for names in MARGINS:
        if all(name in row for name in names):
            chosen, rejected = (shapes.number(row[name], name) for name in names)
            return None if chosen is None or rejected is None else chosen - rejected
    return None
