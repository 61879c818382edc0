"""Win rates and mean differences with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from alignment_core.seeds import seed_of

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class WinRate:
    """The result of paired comparisons, one per prompt.

    Attributes:
        wins, ties, losses: number of prompts each.
        rate: share of wins, where a tie counts half.
        low, high: 95 % confidence interval of the rate, see `win_rate`.
        p_value: two-sided exact sign test of wins against losses, without ties. It is 1 if there are only ties.
    """

    wins: int
    ties: int
    losses: int
    rate: float
    low: float
    high: float
    p_value: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def win_rate(verdicts: Sequence[int]) -> WinRate:
    """Return the win rate of verdicts, each 1 (win), 0 (tie) or -1 (loss).

    The interval is that of Clopper and Pearson (Biometrika 26, 1934), with a tie as half a success. It is exact without
    ties and conservative with ties. A bootstrap interval would have zero width for a single prompt or equal verdicts.
    Swapping the models mirrors the interval: `low` becomes `1 - high`.

    Raises:
        ValueError: there are no verdicts.
    """
    from scipy.stats import beta, binomtest

    count = len(verdicts)
    if not count:
        raise ValueError("no verdicts")
    wins, losses = sum(verdict > 0 for verdict in verdicts), sum(verdict < 0 for verdict in verdicts)
    ties = count - wins - losses
    successes, tail = wins + ties / 2, (1 - CONFIDENCE) / 2
    low = beta.ppf(tail, successes, count - successes + 1) if successes else 0.0
    high = beta.ppf(1 - tail, successes + 1, count - successes) if successes < count else 1.0
    p_value = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    return WinRate(wins, ties, losses, successes / count, float(low), float(high), float(p_value))


def verdict(ours: float, theirs: float) -> int:
    """Return 1 if the first score is higher, -1 if the second is, and 0 otherwise."""
    return (ours > theirs) - (ours < theirs)


def mean_with_interval(differences: Sequence[float], seed: int) -> tuple[float, float, float]:
    """Return the mean of paired differences and its 95 % percentile bootstrap interval over prompts.

    Args:
        differences: one per prompt, at least one.
        seed: seed of the resampling.
    """
    import numpy as np

    found = np.asarray(differences, dtype=float)
    rng = np.random.default_rng(seed_of(seed, "bootstrap"))
    means = found[rng.integers(0, len(found), (RESAMPLES, len(found)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(found.mean()), float(low), float(high)
