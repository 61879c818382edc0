"""Select the current votes, and read them with what they judge."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    Text,
    and_,
    case,
    cast,
    func,
    literal,
    or_,
    select,
    union_all,
)

from alignment_core.feedback.database import prompts, ranking_tasks, responses, votes
from alignment_core.feedback.vote_values import BAD, WITHDRAWN, judged_ids
from alignment_core.feedback.votes import RankingTask, Rater, RaterKind, Response, Vote
from alignment_core.records import Conversation

BATCH = 8000
"""Rows that are read at once. Fewer take longer, because what they judge is looked up in the order of its ids."""
ID_DIGITS = 32
"""Hexadecimal digits of the ids of prompts, responses and ranking tasks."""


# Rows are unpacked, because access to a column by name takes longer than all else.
_Row = tuple[int, str, str, str, RaterKind, str, str, float]
"""A row of the table of votes."""
_Answer = tuple[str, str, str]
"""Id of the prompt, text and model of a response."""
_THUMBS: Mapping[str, Mapping[str, Any]] = {json.dumps({"up": up}): {"up": up} for up in (True, False, None)}


@dataclass(frozen=True, slots=True)
class Judged:
    """Rows of the table of votes, with what they judge.

    Attributes:
        rows: each row, with what its value says and the ids of the responses that it judges. If one of them was
            deleted, the row is left out.
        answers: the responses by id.
        messages: the messages of the prompts as JSON, by id.
    """

    rows: Sequence[tuple[_Row, Mapping[str, Any], Sequence[str]]]
    answers: Mapping[str, _Answer]
    messages: Mapping[str, str]

    def votes(self) -> Iterator[Vote]:
        """Yield the votes that were not withdrawn."""
        for (number, kind, _, name, rater_kind, _, comment, time), said, names in self.rows:
            if said == WITHDRAWN:
                continue
            ranks = tuple(said["ranks"][name] for name in names) if "ranks" in said else ()
            up, bad, edited = said["up"] if kind == "thumb" else None, "bad" in said, said.get("edited", "")
            prompt = _conversation(self.messages[self.answers[names[0]][0]])
            judged = tuple(_response(name, self.answers[name]) for name in names)
            yield Vote(number, Rater(name, rater_kind), prompt, judged, ranks, up, comment, time, bad, edited)


def read_judged(connection: Connection, query: Select[Any]) -> Iterator[Judged]:
    """Yield the rows that a query selects, in its order and a few at once.

    Args:
        connection: an open transaction.
        query: selects all columns of the table of votes.
    """
    for rows in _batches(connection, query):
        said = [_THUMBS.get(row[5]) or json.loads(row[5]) for row in rows]
        # A ranking names its responses in the order of its task.
        named = [judged_ids(value) for value in said]
        others = {row[2] for row, names in zip(rows, named, strict=True) if row[1] == "ranking" and not names}
        tasks = {name: tuple(json.loads(listed)) for _, name, _, listed in _with_ids(connection, ranking_tasks, others)}
        named = [
            names or ((row[2],) if row[1] == "thumb" else tasks.get(row[2], ()))
            for row, names in zip(rows, named, strict=True)
        ]
        answers, messages = _answers(connection, {name for names in named for name in names})
        together = zip(rows, said, named, strict=True)
        yield Judged(
            [(row._t, value, names) for row, value, names in together if names and answers.keys() >= {*names}],
            answers,
            messages,
        )


def read_ranking_tasks(connection: Connection, ids: Sequence[str] | None = None) -> Iterator[RankingTask]:
    """Yield the ranking tasks with these ids, or all, oldest first."""
    query = select(ranking_tasks).order_by(ranking_tasks.c.number)
    for rows in _batches(connection, query if ids is None else query.where(ranking_tasks.c.id.in_(ids))):
        named = {name: json.loads(listed) for _, name, _, listed in rows}
        answers, messages = _answers(connection, {name for names in named.values() for name in names})
        for task, names in named.items():
            prompt = _conversation(messages[answers[names[0]][0]])
            yield RankingTask(task, prompt, tuple(_response(name, answers[name]) for name in names))


def _answers(connection: Connection, names: Iterable[str]) -> tuple[dict[str, _Answer], dict[str, str]]:
    """Return the responses with these ids, and the messages of their prompts, each by id."""
    answers: dict[str, _Answer] = {
        name: (prompt, text, model) for name, prompt, text, model in _with_ids(connection, responses, names)
    }
    asked = {prompt for prompt, _, _ in answers.values()}
    messages = {name: text for name, text in _with_ids(connection, prompts, asked)}  # noqa: C416
    return answers, messages


def _response(name: str, answer: _Answer) -> Response:
    return Response(name, *answer[1:])


def _batches(connection: Connection, query: Select[Any]) -> Iterator[Sequence[Row[Any]]]:
    yield from connection.execute(query.execution_options(yield_per=BATCH)).partitions()


def _with_ids(connection: Connection, table: Table, ids: Iterable[str]) -> Sequence[tuple[Any, ...]]:
    """Return the rows of a table with these ids."""
    # One parameter for all ids: thousands of them would have a limit and take longer than the query.
    listed = literal(json.dumps(sorted(ids)), Text)  # sorted: neighbors in the index
    if connection.dialect.name == "postgresql":
        wanted = func.json_array_elements_text(cast(listed, JSON)).table_valued("value")
    else:
        wanted = func.json_each(listed).table_valued("value")
    with connection.execute(select(table).join(wanted, table.c.id == wanted.c.value)) as found:
        # The driver's rows: nothing in them needs to be converted, and a `Row` of each takes as long as reading it.
        assert found.cursor is not None
        return found.cursor.fetchall()


def _conversation(messages: str) -> Conversation:
    return tuple(json.loads(messages))


def current_votes(
    after: int, upto: int | None, before: int | None = None, *, rater: str | None = None, share: float = 1.0
) -> Select[Any]:
    """Return a query for the last vote of each rater on each response or ranking task, oldest first.

    Args:
        after: only votes with a higher number are selected.
        upto: votes with a higher number are ignored; None for no limit.
        before: only votes up to this number are selected; None for no limit.
        rater: only votes of this rater are selected; None for all.
        share: the share of the prompts to which the votes belong; 1 for all. The same prompts are in every sample.
    """
    last = last_votes(after, upto)
    last = last if rater is None else last.where(votes.c.rater == rater)
    last = last if share >= 1 else last.where(_on_share_of_prompts(share))
    found = select(votes).where(votes.c.id > after, votes.c.id.in_(last)).order_by(votes.c.id)
    return found if before is None else found.where(votes.c.id <= before)


def last_votes(after: int, upto: int | None, before: int | None = None) -> Select[Any]:
    """Return a query for the numbers of the votes that `current_votes` selects."""
    # Without a condition on the number, the index alone is read.
    last = select(func.max(votes.c.id)).group_by(votes.c.rater, votes.c.kind, votes.c.subject)
    last = last.where(votes.c.id > after) if after else last
    last = last if upto is None else last.where(votes.c.id <= upto)
    return last if before is None else last.having(func.max(votes.c.id) <= before)


def _on_share_of_prompts(share: float) -> ColumnElement[bool]:
    """Return the condition that a vote is on one of a random share of the prompts. Their ids are hashes."""
    below = f"{int(share * 16**ID_DIGITS):0{ID_DIGITS}x}"
    answers = select(responses.c.id).where(responses.c.prompt < below)
    tasks = select(ranking_tasks.c.id).where(ranking_tasks.c.prompt < below)
    # A comparison has no task. Its value names the responses, after `{"ranks": {"` or `{"bad": ["`.
    named = func.substr(votes.c.value, case((votes.c.value.like(BAD), 11), else_=13), ID_DIGITS)
    return or_(
        and_(votes.c.kind != "comparison", votes.c.subject.in_(union_all(answers, tasks))),
        and_(votes.c.kind == "comparison", named.in_(answers)),
    )
