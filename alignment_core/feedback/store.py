"""The feedback store: prompts, responses and votes. Votes are only ever appended.

A rater's later vote on the same response or ranking task supersedes the earlier one, which is kept as history. Votes
are numbered in the order in which they become visible, so a number identifies exactly the votes that existed then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, Select, func, select

from alignment_core.feedback import database, vote_sums
from alignment_core.feedback.agreement import Agreement, agreements, count_by_rater
from alignment_core.feedback.current_votes import (
    current_votes,
    last_votes,
    read_judged,
    read_ranking_tasks,
)
from alignment_core.feedback.database import (
    is_read_only,
    open_engine,
    read_transaction,
    votes,
    write_transaction,
)
from alignment_core.feedback.rankings import Disagreement, Progress, disagreements, progress
from alignment_core.feedback.rows import add_ranking_task, add_responses, add_vote, digest_of, ranking_value
from alignment_core.feedback.training_rows import training_rows
from alignment_core.feedback.vote_values import SKIPPED, WITHDRAWN, all_bad, is_judgment
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
            return add_responses(connection, prompt, [(text, model)])[0]

    def add_ranking_tasks(self, sampled: Sequence[tuple[Conversation, Sequence[tuple[str, str]]]]) -> list[RankingTask]:
        """Add ranking tasks and return them. Existing equal tasks are reused.

        Args:
            sampled: each prompt with the text and model of its responses. Equal texts are merged. Prompts with fewer
                than two different responses are skipped.
        """
        with write_transaction(self._engine) as connection:
            tasks = [add_ranking_task(connection, prompt, answers) for prompt, answers in sampled]
        return [task for task in tasks if task is not None]

    def thumb(
        self, rater: Rater, response: Response, up: bool | None, comment: str = "", when: float | None = None
    ) -> int:
        """Record a thumb up or down; None removes the thumb and keeps the comment. Return the vote's number."""
        with self._voting() as connection:
            return add_vote(connection, rater, "thumb", response.id, {"up": up}, comment, when)

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
        with self._voting() as connection:
            value = SKIPPED
            if ranks is not None:
                value = ranking_value(connection, task.prompt, task.responses, ranks, edited, task.id)
            return add_vote(connection, rater, "ranking", task.id, value, comment, when)

    def reject_all(self, rater: Rater, task: RankingTask, comment: str = "") -> int:
        """Record that all responses of a task are bad. Return the vote's number."""
        value = all_bad([response.id for response in task.responses])
        with self._voting() as connection:
            return add_vote(connection, rater, "ranking", task.id, value, comment)

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
        with self._voting() as connection:
            made = add_responses(connection, prompt, answers)
            ids = [response.id for response in made]
            subject = digest_of(sorted(ids))
            value = all_bad(ids) if ranks is None else ranking_value(connection, prompt, made, ranks, edited, subject)
            return add_vote(connection, rater, "comparison", subject, value, comment, when)

    def withdraw(self, rater: Rater, subject: RankingTask | Response) -> int:
        """Withdraw a rater's vote, as if it had never been given. Return the number of the withdrawal."""
        kind = "thumb" if isinstance(subject, Response) else "ranking"
        with self._voting() as connection:
            return add_vote(connection, rater, kind, subject.id, WITHDRAWN)

    @contextmanager
    def _voting(self) -> Iterator[Connection]:
        """A transaction that adds one vote."""
        with write_transaction(self._engine) as connection:
            yield connection
        self._recorded(1)

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
