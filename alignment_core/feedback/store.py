"""The feedback store: prompts, responses and what raters said of them. Votes are only ever added.

A rater's later vote on the same thing supersedes the earlier one, which stays. Votes carry rising numbers in the order
in which they became visible, so that a number says exactly which votes there were: `Marks.after` and `upto`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Table, func, select

from alignment_core.errors import DataError
from alignment_core.feedback import schema
from alignment_core.feedback.in_force import SKIPPED, WITHDRAWN, Known, in_force
from alignment_core.feedback.schema import open_engine, prompts, rankables, reading, responses, votes, writing
from alignment_core.feedback.votes import Rankable, Rater, Response, Vote
from alignment_core.records import Conversation


def open_feedback(place: str, recorded: Callable[[int], None] = lambda count: None) -> FeedbackStore:
    """The store at `place`: the path of an SQLite file, or a database URL.

    Args:
        place: it is made if it is not there.
        recorded: told of every vote once it is safe, with their number.

    Raises:
        FeedbackError: it cannot be opened.
    """
    return FeedbackStore(open_engine(place), recorded)


class FeedbackStore:
    """Any number of processes may write at once; what a call has returned is on the disk.

    Every method raises `FeedbackError` where the database cannot be used.
    """

    def __init__(self, engine: Engine, recorded: Callable[[int], None]) -> None:
        self._engine = engine
        self._recorded = recorded

    @property
    def place(self) -> str:
        """Where it lies, for people."""
        return schema.shown(self._engine.url)

    def close(self) -> None:
        """Close the connections. A `with` block does it, too."""
        self._engine.dispose()

    def __enter__(self) -> FeedbackStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- writing --------------------------------------------------------------------------------------------------

    def add_response(self, prompt: Conversation, text: str, model: str) -> Response:
        """Keep an answer; one that is there already is the same one."""
        with writing(self._engine) as connection:
            return self._add_responses(connection, prompt, [(text, model)])[0]

    def add_rankables(self, sampled: Sequence[tuple[Conversation, Sequence[tuple[str, str]]]]) -> list[Rankable]:
        """Keep responses for ranking; those that are there already are the same ones.

        Args:
            sampled: a prompt, and text and model of each of its responses. Equal texts become one; where fewer than
                two are left there is nothing to rank, and nothing is kept.
        """
        with writing(self._engine) as connection:
            kept = [self._add_rankable(connection, prompt, answers) for prompt, answers in sampled]
        return [rankable for rankable in kept if rankable is not None]

    def thumb(
        self, rater: Rater, response: Response, up: bool | None, comment: str = "", when: float | None = None
    ) -> int:
        """A thumb up or down for a response; None takes it back and leaves the comment. Returns the vote's number."""
        return self._vote(rater, "thumb", response.id, {"up": up}, comment, when)

    def rank(
        self,
        rater: Rater,
        rankable: Rankable,
        ranks: Sequence[int] | None,
        comment: str = "",
        when: float | None = None,
    ) -> int:
        """A ranking: one rank for each response, 1 is best, equal ranks are a tie; None skips. Returns its number."""
        if ranks is None:
            return self._vote(rater, "ranking", rankable.id, SKIPPED, comment, when)
        if len(ranks) != len(rankable.responses) or min(ranks) < 1:
            raise DataError(
                "the ranking does not fit its responses",
                where=rankable.id,
                got=list(ranks),
                expected=f"{len(rankable.responses)} ranks from 1",
            )
        by_id = {response.id: int(rank) for response, rank in zip(rankable.responses, ranks, strict=True)}
        return self._vote(rater, "ranking", rankable.id, {"ranks": by_id}, comment, when)

    def withdraw(self, rater: Rater, subject: Rankable | Response) -> int:
        """Take a vote back, as if it had not been given."""
        kind = "thumb" if isinstance(subject, Response) else "ranking"
        return self._vote(rater, kind, subject.id, WITHDRAWN, "", None)

    def _vote(
        self, rater: Rater, kind: str, subject: str, value: Mapping[str, Any], comment: str, when: float | None
    ) -> int:
        if not rater.name.strip():
            raise DataError("a vote needs its rater's name", where="feedback")
        row = {
            "kind": kind,
            "subject": subject,
            "rater": _writable(rater.name.strip()),
            "rater_kind": rater.kind,
            "value": json.dumps(value),
            "comment": _writable(comment.strip()),
            "time": time.time() if when is None else when,
        }
        with writing(self._engine) as connection:
            number = connection.execute(votes.insert().values(**row).returning(votes.c.id)).scalar_one()
        self._recorded(1)
        return int(number)

    def _add_rankable(
        self, connection: Connection, prompt: Conversation, answers: Sequence[tuple[str, str]]
    ) -> Rankable | None:
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
            rankables,
            {
                "id": identity,
                "prompt": _digest(_plain(prompt)),
                "responses": json.dumps([response.id for response in made]),
            },
        )
        return Rankable(identity, prompt, tuple(made))

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
        """Writers take turns, so nobody adds the row between the look and the insert."""
        if connection.execute(select(table.c.id).where(table.c.id == row["id"])).scalar() is None:
            connection.execute(table.insert().values(**row))

    # --- reading --------------------------------------------------------------------------------------------------

    def newest(self) -> int:
        """Number of the newest vote; 0 where there is none."""
        with reading(self._engine) as connection:
            return int(connection.execute(select(func.max(votes.c.id))).scalar() or 0)

    def votes(self, after: int = 0, upto: int | None = None) -> Iterator[Vote]:
        """The votes that were in force at number `upto` (unset: now), those alone that were given after `after`."""
        with reading(self._engine) as connection:
            known = Known(connection)
            for row in connection.execute(in_force(after, upto)):
                vote = known.vote(row)
                if vote is not None:
                    yield vote

    def history(self) -> Iterator[Vote]:
        """Every vote that was ever given and not withdrawn, the superseded ones included, oldest first."""
        with reading(self._engine) as connection:
            known = Known(connection)
            for row in connection.execute(select(votes).order_by(votes.c.id)):
                vote = known.vote(row)
                if vote is not None:
                    yield vote

    def count(self, after: int = 0, upto: int | None = None) -> int:
        """How many judgements `votes` gives that say something: no skipped ranking, no thumb that was taken back."""
        with reading(self._engine) as connection:
            values = (json.loads(row.value) for row in connection.execute(in_force(after, upto)))
            return sum("ranks" in value or value.get("up") is not None for value in values)

    def rankables(self) -> list[Rankable]:
        """All that was stored for ranking, oldest first."""
        with reading(self._engine) as connection:
            known = Known(connection)
            return [known.rankable(row) for row in connection.execute(select(rankables).order_by(rankables.c.number))]

    def judged_by(self, rater: Rater) -> set[str]:
        """Ids of the rankables that this rater has ranked or skipped."""
        with reading(self._engine) as connection:
            mine = in_force(0, None).where(votes.c.rater == rater.name.strip(), votes.c.kind == "ranking")
            rows = connection.execute(mine)
            return {row.subject for row in rows if json.loads(row.value) != WITHDRAWN}


def _plain(prompt: Conversation) -> list[dict[str, Any]]:
    return [dict(message) for message in prompt]


def _digest(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _writable(text: str) -> str:
    """The text, if a database can hold it.

    Raises:
        DataError: it holds a NUL or half a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError("the text is no valid Unicode", where="feedback", got=ascii(text[:60])) from None
    if "\0" in text:
        raise DataError("the text holds a NUL character", where="feedback", got=ascii(text[:60]))
    return text
