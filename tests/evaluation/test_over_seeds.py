"""Intervals over seeds and prompts: by hand, against other implementations, and how often they contain the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from alignment_core.evaluation.over_seeds import SeedMean, mean_over_seeds
from alignment_core.evaluation.win_rate import win_rate

SHARES = (0.0, 1.0)


def test_two_seeds_and_two_prompts_by_hand() -> None:
    """Mean 6. Mean squares with one degree of freedom each: seeds 4, prompts 121, noise 1.

    Variance (4 + 121 - 1) / 4 = 31, with 124² / (4² + 121² + 1²) degrees of freedom.
    """
    found = mean_over_seeds([[0.0, 10.0], [1.0, 13.0]])
    half = stats.t.ppf(0.975, 124**2 / (16 + 14641 + 1)) * math.sqrt(31)
    assert (found.seeds, found.prompts, found.mean) == (2, 2, 6.0)
    assert (found.low, found.high) == pytest.approx((6 - half, 6 + half))


def test_interval_is_not_narrower_than_that_of_the_seeds() -> None:
    """Means 0.5 and 0.6: standard error 0.05, one degree of freedom. The many prompts do not help with that."""
    found = mean_over_seeds([[0.0, 1.0] * 25, [0.0, 1.0] * 20 + [1.0] * 10])
    half = stats.t.ppf(0.975, 1) * 0.05
    assert (found.low, found.high) == pytest.approx((0.55 - half, 0.55 + half))


def test_one_seed_is_student_over_the_prompts() -> None:
    values = [0.0, 1.0, 1.0, 0.5, 1.0]
    known = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = mean_over_seeds([values])
    assert (found.low, found.high) == pytest.approx((known.low, known.high))


def test_seeds_that_differ_more_than_their_prompts_are_student_over_the_seeds() -> None:
    means = np.array([0.2, 0.5, 0.9])
    known = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    found = mean_over_seeds(np.repeat(means[:, None], 200, axis=1).tolist())
    assert (found.low, found.high) == pytest.approx((known.low, known.high))


def test_the_same_answers_with_every_seed_count_once() -> None:
    """Five seeds that answer alike know no more than one of them."""
    values = np.random.default_rng(0).integers(0, 2, 50).astype(float).tolist()
    one, five = mean_over_seeds([values]), mean_over_seeds([values] * 5)
    assert (five.low, five.high) == pytest.approx((one.low, one.high))


def test_bounds_are_kept_and_equal_values_are_not_certain() -> None:
    assert mean_over_seeds([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]], SHARES).high == 1.0
    assert mean_over_seeds([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], SHARES).low == 0.0
    exact = win_rate([1] * 20)
    assert mean_over_seeds([[1.0] * 20] * 3, SHARES) == SeedMean(1.0, exact.low, exact.high, 3, 20)
    found = mean_over_seeds([[-1.0] * 20], (-1.0, 1.0))
    assert (found.low, found.high) == pytest.approx((-1.0, 1 - 2 * exact.low))
    assert mean_over_seeds([[0.25] * 4]) == SeedMean(0.25, -math.inf, math.inf, 1, 4)


@pytest.mark.parametrize(
    ("seeds", "seed_spread", "prompt_spread"),
    [(2, 0.0, 1.0), (2, 0.3, 1.0), (3, 0.1, 0.0), (3, 0.3, 1.0), (5, 0.1, 2.0)],
)
def test_the_interval_contains_the_truth_as_often_as_it_says(
    seeds: int, seed_spread: float, prompt_spread: float
) -> None:
    """Verdicts with effects of seeds and prompts, true rate Φ(0.4 / √(1 + σ²_seed + σ²_prompt)).

    600 draws of a coverage of 95 % are above 93 % in 49 of 50 cases. The interval is careful, so it may be higher. One
    that takes all answers as independent has 67 to 92 % in these cases.
    """
    rng, prompts, draws = np.random.default_rng(1), 100, 600
    truth = stats.norm.cdf(0.4 / math.sqrt(1 + seed_spread**2 + prompt_spread**2))
    hits = 0
    for _ in range(draws):
        effects = seed_spread * rng.normal(size=(seeds, 1)) + prompt_spread * rng.normal(size=(1, prompts))
        table = (rng.normal(size=(seeds, prompts)) + effects + 0.4 > 0).astype(float)
        found = mean_over_seeds(table.tolist(), SHARES)
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / draws <= 0.995
