"""One rater's ranking session: shuffled, blind, with undo. It works without a page."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from alignment_core.feedback.rankings import Disagreement, Progress
from alignment_core.feedback.store import FeedbackStore
from alignment_core.feedback.votes import RankingTask, Rater
from alignment_core.texts import percent

DISAGREEMENTS = 20
"""Number of disagreements that are shown at once."""


@dataclass
class Order:
    """An unfinished ranking: the responses picked so far, best first, in groups of ties.

    Attributes:
        count: the number of responses.
        groups: positions of the responses in each group.
    """

    count: int
    groups: list[list[int]] = field(default_factory=list)

    def name(self, place: int, *, tied: bool = False) -> None:
        """Pick the next best response, or tie it with the last pick. A response that was already picked is ignored."""
        if not 0 <= place < self.count or any(place in group for group in self.groups):
            return
        if tied and self.groups:
            self.groups[-1].append(place)
        else:
            self.groups.append([place])

    def take_back(self) -> None:
        """Remove the last pick."""
        if self.groups:
            self.groups[-1].pop()
            if not self.groups[-1]:
                self.groups.pop()

    def rank_of(self, place: int) -> int | None:
        """Return the rank of a response, 1 is best, or None if it was not picked yet."""
        return next((rank for rank, group in enumerate(self.groups, 1) if place in group), None)

    def missing(self) -> int:
        """Return how many responses must still be picked. One may be left."""
        return self.count - sum(map(len, self.groups)) - 1

    def ranks(self) -> list[int] | None:
        """Return the rank of each response, or None while two or more are not picked. A single one left ranks last."""
        if self.missing() > 0:
            return None
        return [self.rank_of(place) or len(self.groups) + 1 for place in range(self.count)]


@dataclass(frozen=True)
class Verdict:
    """What a rater says about one task.

    Attributes:
        ranks: rank of each response in display order; None if the task is skipped or all responses are bad.
        bad: whether all responses are bad.
        comment: the rater's comment.
        edited: text that the rater wrote from the best response; empty if there is none.
    """

    ranks: list[int] | None = None
    bad: bool = False
    comment: str = ""
    edited: str = ""


class Session:
    """The ranking tasks that one rater still has to rank.

    Prompts and responses are shuffled separately for each rater. The order stays the same after a restart.
    """

    def __init__(self, store: FeedbackStore, rater: Rater) -> None:
        self._store, self._rater = store, rater
        self._all = store.ranking_tasks()
        random.Random(f"{rater.name}/prompts").shuffle(self._all)
        judged = store.judged_by(rater)
        self._todo = [task for task in self._all if task.id not in judged]
        self._done: list[tuple[RankingTask, Verdict]] = []

    @property
    def total(self) -> int:
        return len(self._all)

    @property
    def judged(self) -> int:
        return len(self._all) - len(self._todo)

    @property
    def current(self) -> RankingTask | None:
        """The task to rank now; None at the end."""
        return self._todo[0] if self._todo else None

    def shown(self, task: RankingTask) -> list[int]:
        """Return the display order of the responses, as indices into `task.responses`."""
        places = list(range(len(task.responses)))
        random.Random(f"{self._rater.name}/{task.id}").shuffle(places)
        return places

    def submit(self, verdict: Verdict) -> None:
        """Save a verdict on the current task.

        Raises:
            DataError: the edited text is equal to one of the responses.
        """
        task, ranks = self._todo[0], verdict.ranks
        if verdict.bad:
            self._store.reject_all(self._rater, task, verdict.comment)
        else:
            if ranks is not None:
                by_place = dict(zip(self.shown(task), ranks, strict=True))
                ranks = [by_place[place] for place in range(len(task.responses))]
            self._store.rank(self._rater, task, ranks, verdict.comment, edited=verdict.edited)
        self._done.append((self._todo.pop(0), verdict))

    def undo(self) -> Verdict | None:
        """Return to the last task of this session, withdraw its vote and return it. None: there is no vote."""
        if not self._done:
            return None
        task, verdict = self._done.pop()
        self._store.withdraw(self._rater, task)
        self._todo.insert(0, task)
        return verdict

    def team(self) -> tuple[list[Progress], list[Disagreement]]:
        """Return how far each rater is, the one with the most first, and where others contradict this one."""
        return self._store.progress(), self._store.disagreements(self._rater, DISAGREEMENTS)

    def agreement(self) -> list[str]:
        """Return this rater's agreement with each other rater as text."""
        found = []
        for pair in self._store.agreements():
            if self._rater.name in (pair.first, pair.second):
                other = pair.second if pair.first == self._rater.name else pair.first
                judged = pair.agreed + pair.opposed
                judgments = "1 judgment" if judged == 1 else f"{judged} judgments"
                found.append(f"{other} on {percent(pair.agreed / judged)} of {judgments}")
        return found
