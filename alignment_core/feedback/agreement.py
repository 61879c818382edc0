"""Whether raters agree, so that one can tell a hard question from a careless rater."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

from alignment_core.feedback.votes import Vote


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two raters judged what both judged.

    Attributes:
        first: one of them.
        second: the other.
        agreed: pairs of responses that both put into the same order, and responses to which both gave the same thumb.
        opposed: those that they judged the other way round; a tie of either is in neither number.
    """

    first: str
    second: str
    agreed: int
    opposed: int

    @property
    def share(self) -> float | None:
        """Share of the judgements in which they agree; None where they judged nothing in common."""
        both = self.agreed + self.opposed
        return self.agreed / both if both else None


def agreements(votes: Iterable[Vote]) -> list[Agreement]:
    """For every two raters who have judged the same thing, how often they agree."""
    signs: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for vote in votes:
        for unit, sign in _signs(vote):
            signs[unit][vote.rater.name] = sign
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for by_rater in signs.values():
        for first, second in combinations(sorted(by_rater), 2):
            counts[first, second][by_rater[first] != by_rater[second]] += 1
    return [Agreement(*pair, agreed, opposed) for pair, (agreed, opposed) in sorted(counts.items())]


def _signs(vote: Vote) -> Iterable[tuple[tuple[str, str], int]]:
    """Each judgement in a vote: what it is about, and which of its two sides it takes."""
    if vote.is_thumb:
        if vote.up is not None:
            yield (vote.responses[0].id, ""), 1 if vote.up else -1
        return
    ranked = sorted(zip(vote.responses, vote.ranks, strict=True), key=lambda item: item[0].id) if vote.ranks else []
    for (first, mine), (second, other) in combinations(ranked, 2):
        if mine != other:
            yield (first.id, second.id), 1 if mine < other else -1
