"""How far the raters are with the ranking tasks, and where their rankings contradict each other."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from sqlalchemy import Connection

from alignment_core.feedback.agreement import count_by_rater, rankings_by
from alignment_core.feedback.current_votes import read_ranking_tasks
from alignment_core.feedback.database import ranking_tasks
from alignment_core.feedback.votes import RankingTask, Rater


@dataclass(frozen=True, slots=True)
class Progress:
    """How many ranking tasks a rater has `ranked`, found `bad` altogether, and `skipped`."""

    rater: Rater
    ranked: int
    bad: int
    skipped: int

    @property
    def done(self) -> int:
        return self.ranked + self.bad + self.skipped


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A ranking task on which raters contradict each other.

    Attributes:
        task: the task.
        ranks: the rank of each response of the task by rater, 1 is best.
        opposed: pairs of responses that at least one rater ranks in the opposite order of another.
    """

    task: RankingTask
    ranks: Mapping[str, Sequence[int]]
    opposed: int


def progress(connection: Connection) -> list[Progress]:
    """Return how far each rater is with the ranking tasks, the one with the most first."""
    found = [
        Progress(Rater(name, kind), *(counts.get(what, 0) for what in ("rankings", "all_bad", "skipped")))
        for (name, kind), counts in count_by_rater(connection, of_tasks=True).items()
    ]
    return sorted(found, key=lambda one: (-one.done, one.rater.name))


def disagreements(connection: Connection, rater: str, limit: int) -> list[Disagreement]:
    """Return the tasks that this rater and others have ranked in opposite ways, the worst first.

    Others' rankings of a task that the rater has not ranked stay hidden, since they could influence the vote.

    Args:
        connection: an open transaction.
        rater: the rater's name.
        limit: at most this many tasks are returned.
    """
    opposed, given = {}, {}
    for votes in rankings_by(connection, ranking_tasks.c.id):
        subject = votes[0].subject
        ranks = {vote.rater: json.loads(vote.value)["ranks"] for vote in votes}
        if rater in ranks and (count := _opposed(list(ranks.values()))):
            opposed[subject], given[subject] = count, ranks
    worst = sorted(opposed, key=lambda subject: (-opposed[subject], subject))[:limit]
    tasks = {task.id: task for task in read_ranking_tasks(connection, worst)}
    return [Disagreement(tasks[name], _of_task(given[name], tasks[name]), opposed[name]) for name in worst]


def _of_task(ranks: Mapping[str, Mapping[str, int]], task: RankingTask) -> dict[str, tuple[int, ...]]:
    """Return the ranks in the order of the task's responses. One that a rater wrote is left out and takes no rank."""
    ids = [response.id for response in task.responses]
    found = {}
    for rater, given in ranks.items():
        places = sorted({given[name] for name in ids})
        found[rater] = tuple(1 + places.index(given[name]) for name in ids)
    return found


def _opposed(ranks: Sequence[Mapping[str, int]]) -> int:
    """Return the number of pairs of responses that are ranked in both orders. A tie is in neither order."""
    orders: dict[tuple[str, str], set[bool]] = defaultdict(set)
    for given in ranks:
        for (one, mine), (other, its) in combinations(sorted(given.items()), 2):
            if mine != its:
                orders[one, other].add(mine < its)
    return sum(len(found) == 2 for found in orders.values())
