"""Calibration and text statistics, computed by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment_core.evaluation.calibration import calibration
from alignment_core.evaluation.text_statistics import distinct_share, repeated_share


def test_two_pairs_by_hand() -> None:
    # σ(ln 3) = 3/4: the confidence is 3/4 both times, and one is right. (1 - 3/4)² = 1/16 and (1 - 1/4)² = 9/16.
    found = calibration([math.log(3), -math.log(3)])
    assert found.accuracy == 0.5
    assert found.brier == pytest.approx(10 / 32)
    assert found.ece == pytest.approx(0.25)
    filled = [(b.low, b.pairs, b.confidence, b.accuracy) for b in found.bins if b.pairs]
    assert filled == [(0.75, 2, pytest.approx(0.75), 0.5)] or filled == [(0.7, 2, pytest.approx(0.75), 0.5)]


def test_bins_are_weighted_by_their_pairs() -> None:
    # Three pairs with confidence 0.9, all right: error 0.1. One with 0.6, wrong: error 0.6. (3 · 0.1 + 0.6) / 4
    sure, unsure = math.log(9), math.log(1.5)
    assert calibration([sure, sure, sure, -unsure]).ece == pytest.approx(0.225)


def test_a_coin_is_calibrated() -> None:
    found = calibration([0.0] * 8)
    assert (found.accuracy, found.brier, found.ece) == (0.5, 0.25, 0.0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_every_pair_is_in_a_bin(differences: list[float]) -> None:
    found = calibration(differences)
    assert sum(b.pairs for b in found.bins) == len(differences)
    assert 0 <= found.ece <= 1
    assert all(b.low - 1e-9 <= b.confidence <= b.high + 1e-9 for b in found.bins if b.confidence is not None)
    # With the signs reversed, every right pair is wrong.
    assert calibration([-d for d in differences]).accuracy == pytest.approx(1 - found.accuracy)


def test_repetition_by_hand() -> None:
    # a b a b a b has the 4-grams abab, baba, abab and the 2-grams ab, ba, ab, ba, ab.
    text = "a b a  b\na b"
    assert repeated_share([text]) == pytest.approx(1 / 3)
    assert repeated_share([text, "too short", ""]) == pytest.approx(1 / 9)
    assert (distinct_share([text], 1), distinct_share([text], 2)) == (2 / 6, 2 / 5)
    assert distinct_share([text, "a b"], 2) == 2 / 6, "over all responses together"
    assert distinct_share(["", "word"], 2) is None
