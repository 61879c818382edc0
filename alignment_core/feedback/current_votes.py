"""Select the current votes and turn database rows into `Vote` objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from alignment_core.feedback.database import prompts, ranking_tasks, responses, votes
from alignment_core.feedback.votes import RankingTask, Rater, Response, Vote
from alignment_core.records import Conversation

WITHDRAWN: Mapping[str, Any] = {"withdrawn": True}
SKIPPED: Mapping[str, Any] = {"skipped": True}


class VoteReader:
    """Turn database rows into votes. Each prompt and response is read once and cached.

    Args:
        connection: an open read transaction.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._prompts: dict[str, Conversation] = {}
        self._responses: dict[str, tuple[str, Response]] = {}

    def vote(self, row: Row[Any]) -> Vote | None:
        """Return the vote of a row, or None if it was withdrawn."""
        value = json.loads(row.value)
        if value == WITHDRAWN:
            return None
        rater = Rater(row.rater, row.rater_kind)
        if row.kind == "thumb":
            asked, response = self._response(row.subject)
            return Vote(row.id, rater, self._prompt(asked), (response,), (), value["up"], row.comment, row.time)
        found = self._connection.execute(select(ranking_tasks).where(ranking_tasks.c.id == row.subject)).one()
        ranked = self.ranking_task(found)
        ranks = tuple(value["ranks"][response.id] for response in ranked.responses) if "ranks" in value else ()
        return Vote(row.id, rater, ranked.prompt, ranked.responses, ranks, None, row.comment, row.time)

    def ranking_task(self, row: Row[Any]) -> RankingTask:
        """Return the ranking task of a row."""
        return RankingTask(
            row.id, self._prompt(row.prompt), tuple(self._response(name)[1] for name in json.loads(row.responses))
        )

    def _prompt(self, identity: str) -> Conversation:
        if identity not in self._prompts:
            found = self._connection.execute(select(prompts.c.messages).where(prompts.c.id == identity)).scalar_one()
            self._prompts[identity] = tuple(json.loads(found))
        return self._prompts[identity]

    def _response(self, identity: str) -> tuple[str, Response]:
        if identity not in self._responses:
            row = self._connection.execute(select(responses).where(responses.c.id == identity)).one()
            self._responses[identity] = (row.prompt, Response(row.id, row.text, row.model))
        return self._responses[identity]


def current_votes(after: int, upto: int | None) -> Select[Any]:
    """Return a query for the last vote of each rater on each response or ranking task, oldest first.

    Args:
        after: only votes with a higher number are selected.
        upto: votes with a higher number are ignored; None for no limit.
    """
    last = select(func.max(votes.c.id).label("id")).group_by(votes.c.rater, votes.c.kind, votes.c.subject)
    if upto is not None:
        last = last.where(votes.c.id <= upto)
    newest = last.subquery()
    return select(votes).join(newest, votes.c.id == newest.c.id).where(votes.c.id > after).order_by(votes.c.id)
