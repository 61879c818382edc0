"""The feedback store: prompts, responses and votes. Votes are only ever appended.

A rater's later vote on the same response or ranking task supersedes the earlier one, which is kept as history. Votes
are numbered in the order in which they become visible, so a number identifies exactly the votes that existed then.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Select, Table, func, select

from alignment_core.errors import DataError
from alignment_core.feedback import database, vote_sums
from alignment_core.feedback.agreement import Agreement, agreements, count_by_rater
from alignment_core.feedback.current_votes import (
    ID_DIGITS,
    current_votes,
    last_votes,
    read_judged,
    read_ranking_tasks,
)
from alignment_core.feedback.database import (
    is_read_only,
    open_engine,
    prompts,
    ranking_tasks,
    read_transaction,
    responses,
    votes,
    write_transaction,
)
from alignment_core.feedback.rankings import Disagreement, Progress, disagreements, progress
from alignment_core.feedback.training_rows import training_rows
from alignment_core.feedback.vote_values import SKIPPED, WITHDRAWN, all_bad, is_judgment, ranked
from alignment_core.feedback.votes import RankingTask, Rater, RaterKind, Response, Vote
from alignment_core.records import Conversation

VOTES_AT_ONCE = 1_000_000
"""Votes that one transaction adds to the sums of a store that has none yet. Who votes meanwhile waits some seconds."""


def open_feedback(place: str, recorded: Callable[[int], None] = lambda count: None) -> FeedbackStore:
    """Open the feedback store at `place`.

    Args:
        place: the path of an SQLite file, or a database URL. A missing store is created.
        recorded: called with the number of new votes after they are committed.

    Raises:
        FeedbackError: the store cannot be opened.
    """
    return FeedbackStore(open_engine(place), recorded)


class FeedbackStore:
    """A feedback store. Any number of processes may write at once, and a returned call is on disk.

    Every method raises `FeedbackError` if the database cannot be used.
    """

    def __init__(self, engine: Engine, recorded: Callable[[int], None]) -> None:
        self._engine = engine
        self._recorded = recorded

    @property
    def place(self) -> str:
        """Path or URL of the store for messages, without the password."""
        return database.without_password(self._engine.url)

    def close(self) -> None:
        """Close the connections. A `with` block does so as well."""
        self._engine.dispose()

    def __enter__(self) -> FeedbackStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- writing --------------------------------------------------------------------------------------------------

    def add_response(self, prompt: Conversation, text: str, model: str) -> Response:
        """Add a response and return it. An existing equal response is reused."""
        with write_transaction(self._engine) as connection:
            return self._add_responses(connection, prompt, [(text, model)])[0]

    def add_ranking_tasks(self, sampled: Sequence[tuple[Conversation, Sequence[tuple[str, str]]]]) -> list[RankingTask]:
        """Add ranking tasks and return them. Existing equal tasks are reused.

        Args:
            sampled: each prompt with the text and model of its responses. Equal texts are merged. Prompts with fewer
                than two different responses are skipped.
        """
        with write_transaction(self._engine) as connection:
            tasks = [self._add_ranking_task(connection, prompt, answers) for prompt, answers in sampled]
        return [task for task in tasks if task is not None]

    def thumb(
        self, rater: Rater, response: Response, up: bool | None, comment: str = "", when: float | None = None
    ) -> int:
        """Record a thumb up or down; None removes the thumb and keeps the comment. Return the vote's number."""
        return self._vote(rater, "thumb", response.id, {"up": up}, comment, when)

    def rank(
        self,
        rater: Rater,
        task: RankingTask,
        ranks: Sequence[int] | None,
        comment: str = "",
        when: float | None = None,
        edited: str = "",
    ) -> int:
        """Record a ranking and return the vote's number.

        Args:
            rater: who ranks.
            task: the ranking task.
            ranks: one rank per response: 1 is best, equal ranks are a tie. None skips the task.
            comment: the rater's comment.
            when: seconds since the epoch; None for now.
            edited: text that the rater wrote from one of the responses. It ranks above all of them.

        Raises:
            DataError: the ranks do not match the responses, or the edited text is one of them.
        """
        if ranks is None:
            return self._vote(rater, "ranking", task.id, SKIPPED, comment, when)
        value = self._ranking(task.prompt, task.responses, ranks, edited, task.id)
        return self._vote(rater, "ranking", task.id, value, comment, when)

    def reject_all(self, rater: Rater, task: RankingTask, comment: str = "") -> int:
        """Record that all responses of a task are bad. Return the vote's number."""
        value = all_bad([response.id for response in task.responses])
        return self._vote(rater, "ranking", task.id, value, comment, None)

    def compare(
        self,
        rater: Rater,
        prompt: Conversation,
        answers: Sequence[tuple[str, str]],
        ranks: Sequence[int] | None,
        comment: str = "",
        when: float | None = None,
        edited: str = "",
    ) -> int:
        """Record a comparison of answers that are not offered for ranking, such as those of a chat.

        Args:
            rater: who compares.
            prompt: the conversation up to the answers.
            answers: text and model of each answer. With `edited`, one is enough.
            ranks: one rank per answer, as for `rank`. None: all are bad.
            comment, when, edited: as for `rank`.

        Returns:
            The number of the vote. A later one of the same rater on the same answers supersedes it.

        Raises:
            DataError: as for `rank`.
        """
        with write_transaction(self._engine) as connection:
            made = self._add_responses(connection, prompt, answers)
        ids = [response.id for response in made]
        subject = _digest(sorted(ids))
        value = all_bad(ids) if ranks is None else self._ranking(prompt, made, ranks, edited, subject)
        return self._vote(rater, "comparison", subject, value, comment, when)

    def _ranking(
        self, prompt: Conversation, judged: Sequence[Response], ranks: Sequence[int], edited: str, where: str
    ) -> Mapping[str, Any]:
        """Return the value of a ranking. An edited text is added to the responses, and ranks first."""
        if len(ranks) != len(judged) or min(ranks) < 1:
            expected = f"{len(judged)} ranks from 1"
            raise DataError("the ranking does not match the responses", where=where, got=list(ranks), expected=expected)
        given = {response.id: int(rank) for response, rank in zip(judged, ranks, strict=True)}
        if not edited.strip():
            return ranked(given)
        if edited.strip() in {response.text.strip() for response in judged}:
            raise DataError(
                "the edited answer is equal to one of the responses",
                where=where,
                got=edited[:60],
                do="Change it, or discard the edit and rank that response first",
            )
        with write_transaction(self._engine) as connection:
            (added,) = self._add_responses(connection, prompt, [(edited, "")])
        return ranked({added.id: 1} | {name: rank + 1 for name, rank in given.items()}, added.id)

    def withdraw(self, rater: Rater, subject: RankingTask | Response) -> int:
        """Withdraw a rater's vote, as if it had never been given. Return the number of the withdrawal."""
        kind = "thumb" if isinstance(subject, Response) else "ranking"
        return self._vote(rater, kind, subject.id, WITHDRAWN, "", None)

    def _vote(
        self, rater: Rater, kind: str, subject: str, value: Mapping[str, Any], comment: str, when: float | None
    ) -> int:
        if not rater.name.strip():
            raise DataError("a vote needs the rater's name", where="feedback")
        row = {
            "kind": kind,
            "subject": subject,
            "rater": _writable(rater.name.strip()),
            "rater_kind": rater.kind,
            "value": json.dumps(value),
            "comment": _writable(comment.strip()),
            "time": time.time() if when is None else when,
        }
        with write_transaction(self._engine) as connection:
            number = int(connection.execute(votes.insert().values(**row).returning(votes.c.id)).scalar_one())
            if number % vote_sums.BLOCK == 0:  # so that the next plan has little to add
                vote_sums.extend(connection, 2 * vote_sums.BLOCK)
        self._recorded(1)
        return number

    def _add_ranking_task(
        self, connection: Connection, prompt: Conversation, answers: Sequence[tuple[str, str]]
    ) -> RankingTask | None:
        different: dict[str, tuple[str, str]] = {}
        for text, model in answers:
            if text.strip():
                different.setdefault(text.strip(), (text, model))
        if len(different) < 2:
            return None
        made = self._add_responses(connection, prompt, list(different.values()))
        identity = _digest([response.id for response in made])
        self._insert(
            connection,
            ranking_tasks,
            {
                "id": identity,
                "prompt": _digest(_plain(prompt)),
                "responses": json.dumps([response.id for response in made]),
            },
        )
        return RankingTask(identity, prompt, tuple(made))

    def _add_responses(
        self, connection: Connection, prompt: Conversation, answers: Sequence[tuple[str, str]]
    ) -> list[Response]:
        messages = _writable(json.dumps(_plain(prompt), ensure_ascii=False))
        asked = _digest(_plain(prompt))
        self._insert(connection, prompts, {"id": asked, "messages": messages})
        made = []
        for text, model in answers:
            response = Response(_digest([asked, text, model]), _writable(text), model)
            row = {"id": response.id, "prompt": asked, "text": text, "model": model}
            self._insert(connection, responses, row)
            made.append(response)
        return made

    def _insert(self, connection: Connection, table: Table, row: Mapping[str, Any]) -> None:
        """Insert a row unless it exists. Writers are serialized, so no other process can insert it in between."""
        if connection.execute(select(table.c.id).where(table.c.id == row["id"])).scalar() is None:
            connection.execute(table.insert().values(**row))

    # --- reading --------------------------------------------------------------------------------------------------

    def newest(self) -> int:
        """Return the number of the newest vote, or 0 if there is none."""
        with read_transaction(self._engine) as connection:
            return int(connection.execute(select(func.max(votes.c.id))).scalar() or 0)

    def votes(self, after: int = 0, upto: int | None = None) -> Iterator[Vote]:
        """Yield the votes that were current at number `upto`, oldest first.

        Args:
            after: only votes with a higher number are returned.
            upto: ignore votes with a higher number; None for the present state.
        """
        return self._votes(current_votes(after, upto))

    def history(self) -> Iterator[Vote]:
        """Yield every vote including superseded ones, but without withdrawals, oldest first."""
        return self._votes(select(votes).order_by(votes.c.id))

    def training_rows(
        self, after: int = 0, upto: int | None = None, before: int | None = None
    ) -> Iterator[tuple[str, str]]:
        """Yield the file and the line of the training data in each current vote, oldest first.

        Args:
            after, upto: as for `votes`.
            before: only votes up to this number; None for no limit.
        """
        return self._rows(current_votes(after, upto, before), metadata=False)

    def sample(
        self, after: int, upto: int | None, before: int | None, share: float
    ) -> tuple[int, list[tuple[str, str]]]:
        """Return the number of current votes on a share of the prompts, and their files and lines of training data.

        The prompts are chosen at random, but always the same.

        Args:
            after, upto, before: as for `training_rows`.
            share: from 0 to 1.
        """
        with read_transaction(self._engine) as connection:
            found = [*read_judged(connection, current_votes(after, upto, before, share=share))]
        return sum(len(judged.rows) for judged in found), [row for judged in found for row in training_rows(judged)]

    def count_current(self, after: int, upto: int | None, before: int | None) -> int:
        """Count the current votes in `training_rows`, with withdrawn votes and skipped rankings."""
        with read_transaction(self._engine) as connection:
            counted = select(func.count()).select_from(last_votes(after, upto, before).subquery())
            return connection.execute(counted).scalar_one()

    def rows_to_export(self, *, history: bool) -> Iterator[tuple[str, str]]:
        """Yield the file and the line of each current vote, with rater, time, model and comment, oldest first.

        Args:
            history: also yield superseded votes.
        """
        return self._rows(select(votes).order_by(votes.c.id) if history else current_votes(0, None), metadata=True)

    def digest(self, after: int = 0, upto: int | None = None, before: int | None = None) -> str:
        """Return a hash of what `training_rows` yields, in any order."""
        with read_transaction(self._engine) as connection:
            behind = vote_sums.is_behind(connection)
        while behind and not is_read_only(self._engine):
            with write_transaction(self._engine) as connection:
                vote_sums.extend(connection, VOTES_AT_ONCE)
                behind = vote_sums.is_behind(connection)
        with read_transaction(self._engine) as connection:
            last = int(connection.execute(select(func.max(votes.c.id))).scalar() or 0)
            return vote_sums.votes_digest(connection, after, last if upto is None else min(upto, last), before)

    def count(self, after: int = 0, upto: int | None = None) -> int:
        """Count the votes in `votes` that hold a judgment, without skipped rankings and removed thumbs."""
        current = current_votes(after, upto).order_by(None).subquery()
        with read_transaction(self._engine) as connection:
            return connection.execute(select(func.count()).where(is_judgment(current.c.value))).scalar_one()

    def count_by_rater(self) -> dict[tuple[str, RaterKind], dict[str, int]]:
        """Return the number of current votes by name and kind of the rater, and by what they are.

        They are `thumbs`, `rankings`, `all_bad` (all responses to a prompt are bad) and `skipped` rankings.
        """
        with read_transaction(self._engine) as connection:
            return count_by_rater(connection)

    def agreements(self) -> list[Agreement]:
        """Return the agreement of every two raters who have judged the same responses."""
        with read_transaction(self._engine) as connection:
            return agreements(connection)

    def progress(self) -> list[Progress]:
        """Return how far each rater is with the ranking tasks, the one with the most first."""
        with read_transaction(self._engine) as connection:
            return progress(connection)

    def disagreements(self, rater: Rater, limit: int) -> list[Disagreement]:
        """Return the ranking tasks that this rater and others have ranked in opposite ways, the worst first."""
        with read_transaction(self._engine) as connection:
            return disagreements(connection, rater.name.strip(), limit)

    def ranking_tasks(self) -> list[RankingTask]:
        """Return all ranking tasks, oldest first."""
        with read_transaction(self._engine) as connection:
            return list(read_ranking_tasks(connection))

    def _votes(self, query: Select[Any]) -> Iterator[Vote]:
        with read_transaction(self._engine) as connection:
            for judged in read_judged(connection, query):
                yield from judged.votes()

    def _rows(self, query: Select[Any], *, metadata: bool) -> Iterator[tuple[str, str]]:
        with read_transaction(self._engine) as connection:
            for judged in read_judged(connection, query):
                yield from training_rows(judged, metadata=metadata)

    def judged_by(self, rater: Rater) -> set[str]:
        """Return the ids of the ranking tasks that this rater has ranked or skipped."""
        with read_transaction(self._engine) as connection:
            mine = current_votes(0, None, rater=rater.name.strip()).where(votes.c.kind == "ranking")
            rows = connection.execute(mine)
            return {row.subject for row in rows if json.loads(row.value) != WITHDRAWN}


def _plain(prompt: Conversation) -> list[dict[str, Any]]:
    return [dict(message) for message in prompt]


def _digest(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]


def _writable(text: str) -> str:
    """Return the text unchanged if a database can store it.

    Raises:
        DataError: it contains a NUL character or a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError("the text is not valid Unicode", where="feedback", got=ascii(text[:60])) from None
    if "\0" in text:
        raise DataError("the text contains a NUL character", where="feedback", got=ascii(text[:60]))
    return text
