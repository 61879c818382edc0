"""Means over runs with several seeds that answered the same prompts, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignment_core.evaluation.win_rate import CONFIDENCE

TAIL = (1 + CONFIDENCE) / 2


@dataclass(frozen=True)
class SeedMean:
    """A mean over seeds and prompts.

    Attributes:
        mean: the mean.
        low, high: its 95 % confidence interval, see `mean_over_seeds`.
        seeds, prompts: number of each.
    """

    mean: float
    low: float
    high: float
    seeds: int
    prompts: int


def mean_over_seeds(table: Sequence[Sequence[float]], across: tuple[float, float] = (-math.inf, math.inf)) -> SeedMean:
    """Return the mean of a table of seeds × prompts, and the interval that it would have for other seeds and prompts.

    The answers of one seed are not independent, and neither are those of several seeds to one prompt. A value is
    modelled as the sum of random effects of its seed and of its prompt, and noise. Then the variance of the mean is
    `(MS_seeds + MS_prompts - MS_noise) / (seeds · prompts)` with the mean squares of the two-way analysis of variance,
    as with clusters in two ways (Cameron, Gelbach and Miller, J. Bus. Econ. Stat. 29, 2011). Its degrees of freedom are
    Satterthwaite's (Biometrics Bulletin 2, 1946), as in the quasi-F of Clark (J. Verbal Learn. Verbal Behav. 12, 1973).
    With few seeds they are estimated badly, so the interval is never narrower than Student's for the means of the
    seeds, which has `seeds - 1` degrees of freedom. A single seed says nothing about others: its interval is Student's
    over the prompts. `benchmarks/over_seeds.py` measures how often these intervals contain the truth.

    If all values are equal, nothing tells how they vary. Within bounds, the interval is then that of Clopper and
    Pearson with one value per prompt, otherwise it is infinite.

    Args:
        table: for each seed its values, one per prompt, in the same order. At least one of each.
        across: least and greatest possible value.
    """
    import numpy as np

    values = np.asarray(table, dtype=float)
    seeds, prompts = values.shape
    mean, error = float(values.mean()), _half_width(values)
    if error is not None:
        return SeedMean(mean, max(mean - error, across[0]), min(mean + error, across[1]), seeds, prompts)
    low, high = _of_equal_values(mean, prompts, across)
    return SeedMean(mean, low, high, seeds, prompts)


def _half_width(values: Any) -> float | None:
    """Return half the width of the interval. None: the values do not vary."""
    seeds, prompts = values.shape
    mean, of_seeds, of_prompts = values.mean(), values.mean(axis=1), values.mean(axis=0)
    # A mean square and its degrees of freedom. One seed or prompt alone does not vary.
    between_seeds = _mean_square(prompts * ((of_seeds - mean) ** 2).sum(), seeds - 1)
    between_prompts = _mean_square(seeds * ((of_prompts - mean) ** 2).sum(), prompts - 1)
    rest = values - of_seeds[:, None] - of_prompts[None, :] + mean
    noise = _mean_square((rest**2).sum(), (seeds - 1) * (prompts - 1))
    # The noise is in both. An estimate below one of them is a negative variance of the other.
    both = max(between_seeds[0] + between_prompts[0] - noise[0], between_seeds[0], between_prompts[0])
    if not both:
        return None
    terms = [square**2 / freedom for square, freedom in (between_seeds, between_prompts, noise) if freedom]
    widths = [_student(both**2 / sum(terms)) * math.sqrt(both / values.size)]
    if between_seeds[1]:
        widths.append(_student(between_seeds[1]) * math.sqrt(between_seeds[0] / values.size))
    return max(widths)


def _mean_square(squares: float, freedom: int) -> tuple[float, int]:
    """Return a mean square, without the rounding errors of equal values, and its degrees of freedom."""
    return (0.0 if not freedom or squares < 1e-12 else float(squares) / freedom), freedom


def _student(freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf(TAIL, freedom))


def _of_equal_values(mean: float, prompts: int, across: tuple[float, float]) -> tuple[float, float]:
    from scipy.stats import beta

    low, high = across
    if not (math.isfinite(low) and math.isfinite(high)):
        return -math.inf, math.inf
    share = (mean - low) / (high - low) * prompts
    least = beta.ppf(1 - TAIL, share, prompts - share + 1) if share else 0.0
    most = beta.ppf(TAIL, share + 1, prompts - share) if share < prompts else 1.0
    return low + float(least) * (high - low), low + float(most) * (high - low)
