"""Exports of annotation tools: Label Studio and Argilla."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from alignment_core.config import SourceConfig
from alignment_core.data.sources.parsing import shapes
from alignment_core.data.sources.parsing.judgments import labelled_response, ordered_pairs
from alignment_core.records import Conversation, LabelledResponse
from alignment_core.records.columns import TrackedRow, inside, peek
from alignment_core.records.format import BadRow, Dropped, Fields, Outcome, Reading, RecordFormat
from alignment_core.records.raters import seconds

PROMPTS = ("prompt", "instruction", "question", "context", "messages", "chat", "conversation", "input", "text")
ANSWER = re.compile(r"(response|answer|completion|output|generation|reply|text|chosen|rejected|left|right)", re.I)
AnnotatedVote = tuple[str | None, Any, str]
"""Who answered a question of a record, the answer, and its status."""
TIES = frozenset({"tie", "ties", "equal", "same", "both", "neither", "draw", "none"})


class LabelStudio(RecordFormat):
    """Label Studio tasks with annotations: pairwise choices, rankings, or a rating or choice for one response."""

    name: ClassVar[str] = "label_studio"
    shape: ClassVar[str] = "{data: {prompt, answer1, answer2}, annotations: [{result: [{type: pairwise, value}]}]}"

    def matches(self, row: Fields) -> bool:
        return isinstance(row.get("data"), Mapping) and any(
            isinstance(row.get(name), list) for name in ("annotations", "result", "completions")
        )

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        data = inside(row, "data")
        annotations = row.get("annotations", row.get("completions"))
        if annotations is None:
            annotations = [row]
        if not annotations:
            yield Dropped("pending", origin)
        for annotation in annotations:
            if not isinstance(annotation, Mapping):
                raise BadRow(
                    "bad_annotation", f"an annotation has type {type(annotation).__name__}, expected an object"
                )
            if annotation.get("was_cancelled") or annotation.get("skipped"):
                yield Dropped("discarded", origin)
                continue
            results = [item for item in annotation.get("result") or () if isinstance(item, Mapping)]
            if not results:
                yield Dropped("pending", origin)
            for result in results:
                yield from self._result(result, annotation, data, origin, source)

    def _result(
        self, result: Fields, annotation: Fields, data: Fields, origin: str, source: SourceConfig
    ) -> Iterator[Outcome]:
        value = result.get("value")
        if not isinstance(value, Mapping):
            raise BadRow("bad_annotation", "a result has no value")
        prompt, answers = _fields(data)
        who = annotation.get("completed_by", annotation.get("created_username"))
        voter = str(who.get("id", who.get("email"))) if isinstance(who, Mapping) else None if who is None else str(who)
        when = seconds(annotation.get("updated_at", annotation.get("created_at")))
        match result.get("type"):
            case "pairwise":
                yield from _pairwise(str(value.get("selected")), prompt, answers, origin, source, voter, when)
            case "ranker":
                judged = _ranked(value.get("ranker"), data)
                yield from ordered_pairs(prompt, judged, origin, source, voter=voter, when=when)
            case "rating":
                rating = shapes.number(value.get("rating"), "rating")
                yield _judged(prompt, answers, rating, origin, source, voter, when)
            case "choices":
                choices = value.get("choices")
                if not isinstance(choices, list) or not choices:
                    raise BadRow("bad_annotation", "choices is empty or not a list")
                yield _judged(prompt, answers, choices[0], origin, source, voter, when)
            case other:
                yield Dropped(f"result of type {other}", origin)


class Argilla(RecordFormat):
    """Argilla records: `<question>.responses` or nested `responses` (2.x), `[{user_id, value, status}]` (1.x)."""

    name: ClassVar[str] = "argilla"
    shape: ClassVar[str] = (
        "{<fields>, <question>.responses, <question>.responses.status, <question>.responses.users} or "
        "{fields, responses: {<question>: [{value, user_id}]}}"
    )

    def matches(self, row: Fields) -> bool:
        return _is_nested(row) or bool(self._questions(row))

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        prompt, answers, questions = self._nested(row) if _is_nested(row) else self._flat(row)
        if not questions:
            yield Dropped("pending", origin)
        for votes in questions:
            if not votes:
                yield Dropped("pending", origin)
            for voter, value, status in votes:
                if status != "submitted":
                    yield Dropped(status or "pending", origin)
                elif len(answers) == 1:
                    yield _judged(prompt, answers, value, origin, source, voter, 0.0)
                elif isinstance(value, list):
                    yield from ordered_pairs(prompt, _ranking(value, answers), origin, source, voter=voter)
                else:
                    yield from _pairwise(str(value), prompt, answers, origin, source, voter, 0.0)

    def _nested(self, row: Fields) -> tuple[Conversation, dict[str, Conversation], list[list[AnnotatedVote]]]:
        """Return prompt, responses and the votes on each question, which have no status in this export."""
        prompt, answers = _fields(inside(row, "fields"))
        given: Mapping[str, Any] = row["responses"] or {}
        if isinstance(row, TrackedRow):
            row.read |= set(row)
        found = []
        for question, votes in given.items():
            if not isinstance(votes, list) or any(
                not isinstance(vote, Mapping) or "value" not in vote for vote in votes
            ):
                raise BadRow("bad_annotation", f"responses.{question} is not a list of objects with a value")
            users = [vote.get("user_id") for vote in votes]
            voters = [None if user is None else str(user) for user in users]
            found.append([(voter, vote["value"], "submitted") for voter, vote in zip(voters, votes, strict=True)])
        return prompt, answers, found

    def _flat(self, row: Fields) -> tuple[Conversation, dict[str, Conversation], list[list[AnnotatedVote]]]:
        questions = self._questions(row)
        own = {"id", "_server_id", "status", "external_id", "metadata", "vectors", "inserted_at", "updated_at"}
        names = [name for name in row if name not in {*own, *questions} and "." not in name]
        fields = TrackedRow({name: peek(row, name) for name in names if not name.endswith("-suggestion")})
        prompt, answers = _fields(fields)
        if isinstance(row, TrackedRow):
            row.read |= set(row) - (set(fields) - fields.read)
        return prompt, answers, [list(self._votes(row, question)) for question in questions]

    def _questions(self, row: Fields) -> list[str]:
        flat = [str(name).removesuffix(".responses") for name in row if str(name).endswith(".responses")]
        exported = {"external_id", "metadata"} <= set(row)  # as in 1.x, even if nobody has answered yet
        return flat or [str(name) for name, value in row.items() if _is_votes(value) or (exported and value == [])]

    def _votes(self, row: Fields, question: str) -> Iterator[AnnotatedVote]:
        if f"{question}.responses" not in row:
            for vote in row[question]:
                yield str(vote.get("user_id")), vote["value"], str(vote["status"])
            return
        values = row[f"{question}.responses"] or []
        if not isinstance(values, list):
            raise BadRow("bad_annotation", f"{question}.responses has type {type(values).__name__}, expected a list")
        statuses = row.get(f"{question}.responses.status") or ["submitted"] * len(values)
        users = row.get(f"{question}.responses.users") or [None] * len(values)
        if any(not isinstance(part, list) or len(part) != len(values) for part in (statuses, users)):
            raise BadRow(
                "bad_annotation", f"{question}.responses has length {len(values)}, but its statuses or users do not"
            )
        for value, status, user in zip(values, statuses, users, strict=True):
            yield None if user is None else str(user), value, str(status)


def _is_nested(row: Fields) -> bool:
    """Return whether a record is nested, as Argilla's `records.to_json` and `to_list` write it."""
    return isinstance(row.get("fields"), Mapping) and "responses" in row and isinstance(row["responses"] or {}, Mapping)


def _is_votes(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) > 0
        and all(isinstance(item, Mapping) and {"value", "status"} <= set(item) for item in value)
    )  # fmt: skip


def _fields(data: Fields) -> tuple[Conversation, dict[str, Conversation]]:
    """Return the prompt and the responses by name from a record's fields.

    Raises:
        BadRow: there is no prompt or no response.
    """
    asked = next((name for name in PROMPTS if data.get(name)), None)
    if asked is None:
        raise BadRow("empty_prompt", f"no prompt among the fields {', '.join(map(str, data))}")
    names = [str(name) for name in data if name != asked and ANSWER.match(str(name)) and data[name] is not None]
    answers = {
        name: shapes.completion(data[name], name)
        for name in sorted(names)
        if not isinstance(data[name], list) or shapes.is_messages(data[name])
    }
    if not answers and shapes.is_messages(data[asked]):
        before, last = shapes.split_last_turn(shapes.conversation(data[asked], asked), asked)
        return before, {asked: last}
    if not answers and not isinstance(data.get("items", data.get("answers", data.get("responses"))), list):
        raise BadRow("empty_completion", f"no response among the fields {', '.join(map(str, data))}")
    return shapes.prompt(data[asked], asked), answers


def _pairwise(
    selected: str, prompt: Conversation, answers: Mapping[str, Conversation], origin: str, source: SourceConfig,
    voter: str | None, when: float,
) -> Iterator[Outcome]:  # fmt: skip
    """Yield the chosen response, given by name or position, paired with every other one."""
    if selected.strip().lower() in TIES:
        yield Dropped("tie", origin)
        return
    if len(answers) < 2:
        raise BadRow("one_completion", "a choice needs at least two responses")
    chosen = _place(selected, list(answers))
    for index, other in enumerate(answers.values()):
        if index != chosen:
            judged = [(list(answers.values())[chosen], 1.0), (other, 0.0)]
            yield from ordered_pairs(prompt, judged, origin, source, voter=voter, when=when)


def _place(selected: str, names: Sequence[str]) -> int:
    """Return the index of the response chosen by its name, left or right, a letter, an ordinal or a number from 1."""
    plain = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in names]
    wanted = re.sub(r"[^a-z0-9]", "", selected.lower())
    if wanted in plain:
        return plain.index(wanted)
    sides = [("left", "a", "1", "first"), ("right", "b", "2", "second"), ("c", "3", "third"), ("d", "4", "fourth")]
    for index, words in enumerate(sides[: len(names)]):
        if wanted in words:
            return index
    raise BadRow("bad_label", f"the choice is {selected!r}, expected one of {', '.join(names)}")


def _judged(
    prompt: Conversation, answers: Mapping[str, Conversation], value: Any, origin: str, source: SourceConfig,
    voter: str | None, when: float,
) -> Outcome:  # fmt: skip
    """Judge the only response: compare a number with the threshold, or read a word as a label."""
    if len(answers) != 1:
        raise BadRow("ambiguous_columns", f"a judgment needs exactly one response, got {len(answers)}")
    (response,) = answers.values()
    if isinstance(value, int | float) and not isinstance(value, bool) and not source.desirable:
        return labelled_response(prompt, response, float(value), origin, source, voter, when)
    desirable = shapes.label(value, "the choice", source.desirable)
    if desirable is None:
        return Dropped("no_label", origin)
    return Reading(LabelledResponse(prompt, response, desirable, 1.0, origin), voter, when)


def _ranked(order: Any, data: Fields) -> list[tuple[Conversation, float]]:
    """Return the scored completions of a Label Studio ranker: a list or a bucket of item ids, best first."""
    if isinstance(order, Mapping):
        order = max((list(ids) for ids in order.values() if isinstance(ids, list)), key=len, default=[])
    items = data.get("items", data.get("answers", data.get("responses")))
    if not isinstance(order, list) or not isinstance(items, list):
        raise BadRow("bad_annotation", "a ranking has no items")
    texts: dict[str, Any] = {}
    for index, item in enumerate(items):
        if isinstance(item, Mapping):
            body = next((item[name] for name in ("body", "text", "html", "content", "title") if item.get(name)), None)
            texts[str(item.get("id", index))] = body
        else:
            texts[str(index)] = item
    if missing := [str(item) for item in order if str(item) not in texts]:
        raise BadRow("bad_annotation", f"the ranking contains unknown items: {', '.join(missing)}")
    return [(shapes.completion(texts[str(item)], f"item {item}"), -float(place)) for place, item in enumerate(order)]


def _ranking(value: list[Any], answers: Mapping[str, Conversation]) -> list[tuple[Conversation, float]]:
    """Return the scored responses of an Argilla ranking: [{value: <response name>, rank}]."""
    judged = []
    for item in value:
        if not isinstance(item, Mapping) or "rank" not in item:
            raise BadRow("bad_ranking", "an item of the ranking has no rank")
        rank = shapes.number(item["rank"], "rank")
        if rank is None:
            raise BadRow("bad_ranking", "a rank is null or empty")
        place = _place(str(item.get("value")), list(answers))
        judged.append((list(answers.values())[place], -rank))
    return judged
