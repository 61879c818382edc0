"""Agreement between raters, to distinguish a hard question from a careless rater."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

from alignment_core.feedback.votes import Vote


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


def agreements(votes: Iterable[Vote]) -> list[Agreement]:
    """Return the agreement of every two raters who have judged the same responses."""
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
    """Yield each judgment in a vote as (subject, sign). The sign is 1 or -1."""
    if vote.is_thumb:
        if vote.up is not None:
            yield (vote.responses[0].id, ""), 1 if vote.up else -1
        return
    ranked = sorted(zip(vote.responses, vote.ranks, strict=True), key=lambda item: item[0].id) if vote.ranks else []
    for (first, mine), (second, other) in combinations(ranked, 2):
        if mine != other:
            yield (first.id, second.id), 1 if mine < other else -1
