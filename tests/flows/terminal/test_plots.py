"""Curves in braille dots, against characters worked out by hand: dots 1-3, 7 are left, 4-6, 8 right, from the top."""

from __future__ import annotations

import pytest

from alignment_flows.terminal.plots import leading, panel, plot


def test_rising_curve_is_connected() -> None:
    # Two columns of four dots: the bottom dot (7), then the three dots above it (4, 5, 6).
    assert plot([(1, 0.0), (2, 1.0)], width=1, height=1) == ["⡸"]
    assert plot([(1, 1.0), (2, 0.0)], width=1, height=1) == ["⢱"]  # dot 1, then 5, 6, 8


def test_line_between_two_distant_points_is_straight() -> None:
    # Four columns, four rows: one dot each, from the bottom left (7, 6) to the top right (2, 4).
    assert plot([(0, 0.0), (3, 3.0)], width=2, height=1) == ["⡠⠊"]


def test_flat_curve_is_one_line() -> None:
    assert plot([(1, 5.0), (9, 5.0)], width=3, height=1) == ["⠒⠒⠒"]  # dots 2 and 5


def test_column_shows_the_mean_of_its_points() -> None:
    # 0, 4, 0, 4 in the first column are 2: in the middle between 0 and 4 in the second and third of four columns.
    points = [(0, 0.0), (0.1, 4.0), (0.2, 0.0), (0.3, 4.0), (10, 0.0), (20, 4.0), (30, 4.0)]
    (line,) = plot(points, width=2, height=1)
    # Rows: 2 -> round(1.5) = 2; 0 -> 3; 4 -> 0; 4 -> 0. Dots: 3; 8; 1, 2, 3 (up from 8); 4.
    assert line == chr(0x2800 + 0x04 + 0x80) + chr(0x2800 + 0x01 + 0x02 + 0x04 + 0x08)


def test_panel_names_the_curve_its_newest_value_and_the_ends_of_its_axis() -> None:
    lines = panel("loss", [(1, 0.75), (2, 0.25), (3, 0.5)], width=20, height=2)
    assert [len(line) for line in lines] == [20, 20, 20]
    assert lines[0].rstrip() == "loss 0.5"
    assert lines[1].startswith("   0.75 ")
    assert lines[2].startswith("   0.25 ")


def test_ends_of_the_axis_fit_beside_the_plot() -> None:
    """At most 7 characters: a rounding error beside 4 is 0, and a number that is too long loses digits."""
    first = [line[:8] for line in panel("reward_margin", [(1, -4.9e-07), (2, 4.0)], width=20, height=2)[1:]]
    assert first == ["      4 ", "      0 "]
    first = [line[:8] for line in panel("kl", [(1, -1.26e-07), (2, -1.26e-05)], width=20, height=2)[1:]]
    assert first == ["-1e-07 ".rjust(8), "-1e-05 ".rjust(8)]


@pytest.mark.parametrize(
    ("names", "curves"),
    [
        (["loss", "grad_norm", "learning_rate"], ["loss"]),
        (["accuracy", "reward_chosen", "reward_margin", "loss"], ["loss", "reward_margin"]),
        (["accuracy", "score_chosen", "loss"], ["loss", "accuracy"]),
        (["reward_desirable", "kl", "loss"], ["loss", "kl"]),
        (["reward_desirable", "reward_margin", "kl", "loss"], ["loss", "reward_margin"]),
        (["loss", "policy_loss", "score", "kl", "entropy"], ["score", "kl"]),
        (["odd"], []),
    ],
)
def test_leading_curves_of_each_kind_of_training(names: list[str], curves: list[str]) -> None:
    assert leading({name: [1.0, 2.0] for name in names}) == curves


def test_curve_that_never_changes_is_shown_only_if_there_is_no_other() -> None:
    flat, moving = [0.0, 0.0, 0.0], [0.5, 0.4, 0.5]
    assert leading({"loss": moving, "reward_margin": flat, "kl": moving}) == ["loss", "kl"]
    assert leading({"loss": flat, "accuracy": moving}) == ["accuracy", "loss"]
    assert leading({"loss": [0.7], "reward_margin": [0.0]}) == ["loss", "reward_margin"]
