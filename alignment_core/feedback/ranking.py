"""One rater's way through the responses that are to be ranked: shuffled, blind, with undo. No page is needed for it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from alignment_core.feedback.agreement import agreements
from alignment_core.feedback.store import FeedbackStore
from alignment_core.feedback.votes import Rankable, Rater


@dataclass
class Order:
    """A ranking on its way: the responses named so far, best first, those of one group tied.

    Attributes:
        count: how many responses there are.
        groups: places of responses.
    """

    count: int
    groups: list[list[int]] = field(default_factory=list)

    def name(self, place: int, *, tied: bool = False) -> None:
        """The next best response, or one as good as the last named; nothing if it is named already."""
        if not 0 <= place < self.count or any(place in group for group in self.groups):
            return
        if tied and self.groups:
            self.groups[-1].append(place)
        else:
            self.groups.append([place])

    def take_back(self) -> None:
        """Forget the last one that was named."""
        if self.groups:
            self.groups[-1].pop()
            if not self.groups[-1]:
                self.groups.pop()

    def rank_of(self, place: int) -> int | None:
        """Rank of a response, 1 is best; None while it is not named."""
        return next((rank for rank, group in enumerate(self.groups, 1) if place in group), None)

    def ranks(self) -> list[int] | None:
        """The rank of each response once it is clear: a single one that was not named is the last. None before."""
        missing = [place for place in range(self.count) if self.rank_of(place) is None]
        if len(missing) > 1:
            return None
        return [self.rank_of(place) or len(self.groups) + 1 for place in range(self.count)]


class Session:
    """What one rater still has to rank.

    Every rater sees the prompts and the responses to each in an order of their own, the same after a restart.
    """

    def __init__(self, store: FeedbackStore, rater: Rater) -> None:
        self._store, self._rater = store, rater
        self._all = store.rankables()
        random.Random(f"{rater.name}/prompts").shuffle(self._all)
        judged = store.judged_by(rater)
        self._todo = [rankable for rankable in self._all if rankable.id not in judged]
        self._done: list[Rankable] = []

    @property
    def total(self) -> int:
        return len(self._all)

    @property
    def judged(self) -> int:
        return len(self._all) - len(self._todo)

    @property
    def current(self) -> Rankable | None:
        """What is to be ranked now; None at the end."""
        return self._todo[0] if self._todo else None

    def shown(self, rankable: Rankable) -> list[int]:
        """In which order the responses are shown: places in `rankable.responses`."""
        places = list(range(len(rankable.responses)))
        random.Random(f"{self._rater.name}/{rankable.id}").shuffle(places)
        return places

    def submit(self, ranks: list[int] | None) -> None:
        """Keep the ranking of the current responses, in the order in which they are shown; None skips."""
        rankable = self._todo[0]
        if ranks is not None:
            by_place = dict(zip(self.shown(rankable), ranks, strict=True))
            ranks = [by_place[place] for place in range(len(rankable.responses))]
        self._store.rank(self._rater, rankable, ranks)
        self._done.append(self._todo.pop(0))

    def undo(self) -> bool:
        """Go back to what was ranked or skipped last in this session, and take that back; whether there was any."""
        if not self._done:
            return False
        rankable = self._done.pop()
        self._store.withdraw(self._rater, rankable)
        self._todo.insert(0, rankable)
        return True

    def agreement(self) -> list[str]:
        """How far this rater agrees with each other one, in words."""
        found = []
        for pair in agreements(self._store.votes()):
            if self._rater.name in (pair.first, pair.second):
                other = pair.second if pair.first == self._rater.name else pair.first
                share = pair.agreed / (pair.agreed + pair.opposed)
                found.append(f"{other}: {share:.0%} of {pair.agreed + pair.opposed}")
        return found
