"""Select the current votes, and read them with what they judge."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, Connection, Row, Select, Text, case, cast, func, literal, select

from alignment_core.feedback.database import prompts, ranking_tasks, responses, votes
from alignment_core.feedback.votes import RankingTask, Rater, Response, Vote
from alignment_core.records import Conversation

WITHDRAWN: Mapping[str, Any] = {"withdrawn": True}
SKIPPED: Mapping[str, Any] = {"skipped": True}
BATCH = 2000
"""Rows that are read at once."""


@dataclass(slots=True)  # a frozen one takes four times as long to make
class Judged:
    """A row of the table of votes, with what it judges.

    Attributes:
        row: the row.
        prompt: the messages of the prompt, as JSON.
        answers: id, text and model of the response that got the thumb, or of the responses of the ranking task.
    """

    row: Row[Any]
    prompt: str
    answers: Sequence[Sequence[str]]

    def vote(self) -> Vote | None:
        """Return the vote, or None if it was withdrawn."""
        row, value = self.row, json.loads(self.row.value)
        if value == WITHDRAWN:
            return None
        judged = tuple(Response(*answer) for answer in self.answers)
        ranks = tuple(value["ranks"][response.id] for response in judged) if "ranks" in value else ()
        up = value["up"] if row.kind == "thumb" else None
        rater, prompt = Rater(row.rater, row.rater_kind), _conversation(self.prompt)
        return Vote(row.id, rater, prompt, judged, ranks, up, row.comment, row.time)


def read_judged(connection: Connection, query: Select[Any]) -> Iterator[Judged]:
    """Yield the votes that a query selects, in its order.

    Args:
        connection: an open transaction.
        query: selects from the table of votes, all columns of it among others.
    """
    asked = func.coalesce(responses.c.prompt, ranking_tasks.c.prompt)
    joined = (
        # NULL if the vote is of the other kind: nothing is looked up then.
        query.outerjoin(responses, responses.c.id == case((votes.c.kind == "thumb", votes.c.subject)))
        .outerjoin(ranking_tasks, ranking_tasks.c.id == case((votes.c.kind == "ranking", votes.c.subject)))
        .join(prompts, prompts.c.id == asked)
        .add_columns(prompts.c.messages, responses.c.text, responses.c.model, ranking_tasks.c.responses)
    )
    for rows in _batches(connection, joined):
        ranked = {row.subject: json.loads(row.responses) for row in rows if row.kind == "ranking"}
        answers = _answers(connection, {name for names in ranked.values() for name in names})
        for row in rows:
            if row.kind == "thumb":
                yield Judged(row, row.messages, ((row.subject, row.text, row.model),))
            else:
                yield Judged(row, row.messages, [answers[name] for name in ranked[row.subject]])


def read_ranking_tasks(connection: Connection) -> Iterator[RankingTask]:
    """Yield all ranking tasks, oldest first."""
    query = select(ranking_tasks, prompts.c.messages).join(prompts, prompts.c.id == ranking_tasks.c.prompt)
    for rows in _batches(connection, query.order_by(ranking_tasks.c.number)):
        names = {row.id: json.loads(row.responses) for row in rows}
        answers = _answers(connection, {name for listed in names.values() for name in listed})
        for row in rows:
            made = tuple(Response(*answers[name]) for name in names[row.id])
            yield RankingTask(row.id, _conversation(row.messages), made)


def _batches(connection: Connection, query: Select[Any]) -> Iterator[Sequence[Row[Any]]]:
    yield from connection.execute(query.execution_options(yield_per=BATCH)).partitions()


def _answers(connection: Connection, names: Iterable[str]) -> dict[str, Sequence[str]]:
    """Return id, text and model of the responses with these ids."""
    # One parameter for all ids: thousands of them would have a limit and take longer than the query.
    listed = literal(json.dumps(sorted(names)), Text)  # sorted: neighbors in the index
    if connection.dialect.name == "postgresql":
        wanted = func.json_array_elements_text(cast(listed, JSON)).table_valued("value")
    else:
        wanted = func.json_each(listed).table_valued("value")
    query = select(responses.c.id, responses.c.text, responses.c.model)
    rows = connection.execute(query.join(wanted, responses.c.id == wanted.c.value)).all()
    return {row[0]: row for row in rows}


def _conversation(messages: str) -> Conversation:
    return tuple(json.loads(messages))


def current_votes(after: int, upto: int | None, before: int | None = None) -> Select[Any]:
    """Return a query for the last vote of each rater on each response or ranking task, oldest first.

    Args:
        after: only votes with a higher number are selected.
        upto: votes with a higher number are ignored; None for no limit.
        before: only votes up to this number are selected; None for no limit.
    """
    later = votes.alias("later")
    same = [later.c[name] == votes.c[name] for name in ("rater", "kind", "subject")]
    supersedes = select(later.c.id).where(*same, later.c.id > votes.c.id).correlate(votes)
    if upto is not None:
        supersedes = supersedes.where(later.c.id <= upto)
    found = select(votes).where(votes.c.id > after, ~supersedes.exists()).order_by(votes.c.id)
    for last in (upto, before):
        found = found if last is None else found.where(votes.c.id <= last)
    return found
