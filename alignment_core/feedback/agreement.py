"""Agreement between raters, to distinguish a hard question from a careless rater, and what each of them judged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, combinations, groupby
from operator import attrgetter
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, case, func, select

from alignment_core.feedback.current_votes import BATCH, current_votes
from alignment_core.feedback.database import ranking_tasks
from alignment_core.feedback.vote_values import BAD, DOWN, RANKED, SKIPPED, UP, WITHDRAWN
from alignment_core.feedback.votes import RaterKind


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of two raters on what both of them judged.

    Attributes:
        first: the first rater's name.
        second: the second rater's name.
        agreed: number of pairs of responses that both ranked in the same order, plus responses that got the same thumb.
        opposed: number of those that they judged in opposite ways. A tie of either rater counts in neither number.
    """

    first: str
    second: str
    agreed: int
    opposed: int

    @property
    def share(self) -> float | None:
        """Share of common judgments on which they agree, or None if they have none."""
        both = self.agreed + self.opposed
        return self.agreed / both if both else None


def count_by_rater(connection: Connection, *, of_tasks: bool = False) -> dict[tuple[str, RaterKind], dict[str, int]]:
    """Return the number of current votes by name and kind of the rater, and by what they are.

    They are `thumbs`, `rankings`, `all_bad` (all responses to a prompt are bad) and `skipped` rankings.

    Args:
        connection: an open transaction.
        of_tasks: count only votes on ranking tasks.
    """
    current = current_votes(0, None).order_by(None).subquery()
    column = case(
        (current.c.value == json.dumps(WITHDRAWN), None),
        (current.c.value == json.dumps(SKIPPED), "skipped"),
        (current.c.value.like(BAD), "all_bad"),
        (current.c.kind == "thumb", "thumbs"),
        else_="rankings",
    ).label("column")
    counted = select(current.c.rater, current.c.rater_kind, column, func.count().label("votes"))
    if of_tasks:
        counted = counted.where(current.c.kind == "ranking")
    rows = connection.execute(counted.group_by(current.c.rater, current.c.rater_kind, column))
    found: dict[tuple[str, RaterKind], dict[str, int]] = {}
    for row in rows:
        if row.column is not None:
            found.setdefault((row.rater, row.rater_kind), {})[row.column] = row.votes
    return found


def agreements(connection: Connection) -> list[Agreement]:
    """Return the agreement of every two raters who have judged the same responses."""
    counts: dict[tuple[str, str], list[int]] = {}
    for by_rater in chain(_thumbs(connection), _rankings(connection)):
        if len(by_rater) < 2:
            continue
        for pair in combinations(sorted(by_rater), 2):
            counted = counts.setdefault(pair, [0, 0])
            counted[by_rater[pair[0]] != by_rater[pair[1]]] += 1
    return [Agreement(*pair, agreed, opposed) for pair, (agreed, opposed) in sorted(counts.items())]


def _thumbs(connection: Connection) -> Iterator[dict[str, int]]:
    """Yield, for each response, the thumb of each rater: 1 or -1."""
    current = current_votes(0, None).order_by(None).subquery()
    rows = connection.execute(
        select(current.c.subject, current.c.rater, (current.c.value == UP).label("up"))
        .where(current.c.value.in_([UP, DOWN]))
        .order_by(current.c.subject)
        .execution_options(yield_per=BATCH)
    )
    for _, given in groupby(rows, key=attrgetter("subject")):
        yield {row.rater: 1 if row.up else -1 for row in given}


def rankings_by(connection: Connection, column: ColumnElement[str]) -> Iterator[list[Row[Any]]]:
    """Yield the current rankings in groups of one value of a column of the tasks, each in the order of the votes.

    A row has the attributes `subject` (the task), `rater` and `value`.

    Args:
        connection: an open transaction.
        column: a column of `ranking_tasks`.
    """
    current = current_votes(0, None).order_by(None).subquery()
    rows = connection.execute(
        select(column.label("group"), current.c.subject, current.c.rater, current.c.value)
        .join(ranking_tasks, ranking_tasks.c.id == current.c.subject)
        .where(current.c.value.like(RANKED))
        .order_by(column, current.c.id)
        .execution_options(yield_per=BATCH)
    )
    for _, ranked in groupby(rows, key=attrgetter("group")):
        yield list(ranked)


def _rankings(connection: Connection) -> Iterator[dict[str, int]]:
    """Yield, for each two responses to one prompt, which of them each rater prefers: 1 or -1."""
    for given in rankings_by(connection, ranking_tasks.c.prompt):
        if len({row.rater for row in given}) < 2:
            continue
        signs: dict[tuple[str, str], dict[str, int]] = {}
        for row in given:
            for unit, sign in _signs(row):
                signs.setdefault(unit, {})[row.rater] = sign
        yield from signs.values()


def _signs(row: Row[Any]) -> Iterator[tuple[tuple[str, str], int]]:
    """Yield each two responses that a ranking puts in an order, and which of them it prefers: 1 or -1."""
    for (first, mine), (second, other) in combinations(sorted(json.loads(row.value)["ranks"].items()), 2):
        if mine != other:
            yield (first, second), 1 if mine < other else -1
