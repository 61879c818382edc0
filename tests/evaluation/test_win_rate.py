"""Win rates and their intervals: by hand, from tables, and by enumerating every outcome."""

from __future__ import annotations

from itertools import product
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment_core.evaluation.win_rate import mean_with_interval, verdict, win_rate

VERDICTS = st.lists(st.sampled_from([1, 0, -1]), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("wins", "losses", "low", "high", "p_value"),
    [
        (1, 0, 0.025, 1.0, 1.0),  # one prompt proves nothing: 0.05 / 2
        (10, 0, 0.025 ** (1 / 10), 1.0, 2 / 2**10),
        (5, 5, 0.1870860, 0.8129140, 1.0),  # R: binom.test(5, 10)
        (8, 2, 0.4439045, 0.9747893, 0.109375),  # R: binom.test(8, 10); 2 (45 + 10 + 1) / 1024
        (0, 3, 0.0, 1 - 0.025 ** (1 / 3), 0.25),
    ],
)
def test_interval_without_ties_is_exact(wins: int, losses: int, low: float, high: float, p_value: float) -> None:
    found = win_rate([1] * wins + [-1] * losses)
    assert (found.wins, found.ties, found.losses) == (wins, 0, losses)
    assert found.rate == wins / (wins + losses)
    assert (found.low, found.high, found.p_value) == pytest.approx((low, high, p_value), abs=1e-7)


def test_ties_count_half() -> None:
    found = win_rate([1, 0, 0, -1, 0])
    assert (found.wins, found.ties, found.losses, found.rate, found.p_value) == (1, 3, 1, 0.5, 1.0)
    assert found.low < 0.5 < found.high


@given(st.integers(1, 500))
def test_model_compared_with_itself_is_never_better(count: int) -> None:
    found = win_rate([0] * count)
    assert found.rate == 0.5
    assert found.low < 0.5 < found.high


@given(VERDICTS)
def test_swapped_models_mirror_the_interval(verdicts: list[int]) -> None:
    found, swapped = win_rate(verdicts), win_rate([-one for one in verdicts])
    assert (swapped.wins, swapped.losses) == (found.losses, found.wins)
    assert (swapped.rate, swapped.low, swapped.high) == pytest.approx((1 - found.rate, 1 - found.high, 1 - found.low))
    assert swapped.p_value == pytest.approx(found.p_value)


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_interval_covers_the_true_rate_at_least_95_times_in_100(count: int) -> None:
    """Enumerate every outcome for the exact coverage, with the probabilities of win, tie and loss in steps of 0.1."""
    outcomes = [(w, t) for w, t in product(range(count + 1), repeat=2) if w + t <= count]
    found = {(w, t): win_rate([1] * w + [0] * t + [-1] * (count - w - t)) for w, t in outcomes}
    for win, tie in product(range(11), repeat=2):
        if win + tie > 10:
            continue
        p, q = win / 10, tie / 10
        rate = p + q / 2
        covered = sum(
            comb(count, w) * comb(count - w, t) * p**w * q**t * (1 - p - q) ** (count - w - t)
            for (w, t), interval in found.items()
            if interval.low - 1e-9 <= rate <= interval.high + 1e-9
        )
        assert covered >= 0.95 - 1e-9, (p, q)


def test_no_verdicts_are_an_error() -> None:
    with pytest.raises(ValueError, match="no verdicts"):
        win_rate([])


def test_higher_score_wins() -> None:
    assert [verdict(2.0, 1.0), verdict(1.0, 2.0), verdict(1.0, 1.0), verdict(float("nan"), 1.0)] == [1, -1, 0, 0]


def test_bootstrap_of_differences() -> None:
    assert mean_with_interval([0.25] * 7, seed=0) == (0.25, 0.25, 0.25)
    mean, low, high = mean_with_interval([1.0, -1.0] * 50, seed=0)
    # The mean of 100 fair ±1 has standard deviation 0.1: 95% lie within about 0.196.
    assert mean == 0
    assert (low, high) == pytest.approx((-0.196, 0.196), abs=0.04)
    assert mean_with_interval([1.0, -1.0] * 50, seed=0) == (mean, low, high)
