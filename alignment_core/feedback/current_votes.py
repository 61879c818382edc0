"""Select the current votes, and read them with what they judge."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, func, select

from alignment_core.feedback.database import prompts, ranking_tasks, responses, votes
from alignment_core.feedback.votes import RankingTask, Rater, Response, Vote
from alignment_core.records import Conversation

WITHDRAWN: Mapping[str, Any] = {"withdrawn": True}
SKIPPED: Mapping[str, Any] = {"skipped": True}
BATCH = 2000
"""Rows that are read at once."""
PARAMETERS = 500
"""Ids in one query. SQLite once allowed 999."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A row of the table of votes, with what it judges.

    Attributes:
        row: the row.
        prompt: the messages of the prompt, as JSON.
        responses: the response that got the thumb, or the responses of the ranking task.
    """

    row: Row[Any]
    prompt: str
    responses: tuple[Response, ...]

    def vote(self) -> Vote | None:
        """Return the vote, or None if it was withdrawn."""
        row, value = self.row, json.loads(self.row.value)
        if value == WITHDRAWN:
            return None
        ranks = tuple(value["ranks"][response.id] for response in self.responses) if "ranks" in value else ()
        up = value["up"] if row.kind == "thumb" else None
        rater, prompt = Rater(row.rater, row.rater_kind), _conversation(self.prompt)
        return Vote(row.id, rater, prompt, self.responses, ranks, up, row.comment, row.time)


def read_judged(connection: Connection, query: Select[Any]) -> Iterator[Judged]:
    """Yield the votes that a query selects, in its order.

    Args:
        connection: an open transaction.
        query: selects from the table of votes, all columns of it among others.
    """
    asked = func.coalesce(responses.c.prompt, ranking_tasks.c.prompt)
    joined = (
        query.outerjoin(responses, and_(votes.c.kind == "thumb", responses.c.id == votes.c.subject))
        .outerjoin(ranking_tasks, and_(votes.c.kind == "ranking", ranking_tasks.c.id == votes.c.subject))
        .join(prompts, prompts.c.id == asked)
        .add_columns(prompts.c.messages, responses.c.text, responses.c.model, ranking_tasks.c.responses)
    )
    for rows in _batches(connection, joined):
        ranked = {row.subject: json.loads(row.responses) for row in rows if row.kind == "ranking"}
        made = _responses(connection, {name for names in ranked.values() for name in names})
        for row in rows:
            if row.kind == "thumb":
                yield Judged(row, row.messages, (Response(row.subject, row.text, row.model),))
            else:
                yield Judged(row, row.messages, tuple([made[name] for name in ranked[row.subject]]))


def read_ranking_tasks(connection: Connection) -> Iterator[RankingTask]:
    """Yield all ranking tasks, oldest first."""
    query = select(ranking_tasks, prompts.c.messages).join(prompts, prompts.c.id == ranking_tasks.c.prompt)
    for rows in _batches(connection, query.order_by(ranking_tasks.c.number)):
        names = {row.id: json.loads(row.responses) for row in rows}
        made = _responses(connection, {name for listed in names.values() for name in listed})
        for row in rows:
            yield RankingTask(row.id, _conversation(row.messages), tuple([made[name] for name in names[row.id]]))


def _batches(connection: Connection, query: Select[Any]) -> Iterator[Sequence[Row[Any]]]:
    yield from connection.execute(query.execution_options(yield_per=BATCH)).partitions()


def _responses(connection: Connection, names: Iterable[str]) -> dict[str, Response]:
    """Return the responses with these ids."""
    wanted = sorted(names)  # neighbors in the index
    columns = select(responses.c.id, responses.c.text, responses.c.model)
    found: dict[str, Response] = {}
    for start in range(0, len(wanted), PARAMETERS):
        some = wanted[start : start + PARAMETERS]
        rows = connection.execute(columns.where(responses.c.id.in_(some))).all()
        found.update([(name, Response(name, text, model)) for name, text, model in rows])
    return found


def _conversation(messages: str) -> Conversation:
    return tuple(json.loads(messages))


def current_votes(after: int, upto: int | None, before: int | None = None) -> Select[Any]:
    """Return a query for the last vote of each rater on each response or ranking task, oldest first.

    Args:
        after: only votes with a higher number are selected.
        upto: votes with a higher number are ignored; None for no limit.
        before: only votes up to this number are selected; None for no limit.
    """
    last = select(func.max(votes.c.id).label("id")).group_by(votes.c.rater, votes.c.kind, votes.c.subject)
    if upto is not None:
        last = last.where(votes.c.id <= upto)
    newest = last.subquery()
    found = select(votes).join(newest, votes.c.id == newest.c.id).where(votes.c.id > after).order_by(votes.c.id)
    return found if before is None else found.where(votes.c.id <= before)
