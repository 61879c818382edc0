"""A rule of optimizers that learn from liked and disliked answers: the rewards of both fall."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alignment_core.plugin_api import Advice

FELL = -0.1
"""β times nats. Rewards closer to 0 than this have hardly moved."""
SHARE = 0.5
"""How far the liked answers may fall, as a share of the distance between the two rewards."""


def both_fall(trained: Mapping[str, Any], liked: str, disliked: str, do: str) -> Iterator[Advice]:
    """Yield advice if the policy moves away from the liked answers nearly as far as from the disliked ones.

    Args:
        trained: the metrics of the training.
        liked, disliked: names of the metrics that hold the rewards of the two kinds of answers.
        do: which setting to change.
    """
    good, bad = trained.get(liked), trained.get(disliked)
    if good is not None and bad is not None and good < FELL and bad < FELL and -good > SHARE * (good - bad):
        yield Advice(
            "both-rewards-fall",
            f"Both rewards fell: `{liked}` to {good:.2f}, `{disliked}` to {bad:.2f}",
            "the policy makes the liked answers less likely as well, and moves to answers that nobody rated",
            do,
            "Razin et al., arXiv 2410.08847 (likelihood displacement); Pal et al., arXiv 2402.13228; the thresholds "
            "are our choice",
        )
