"""Exact match and numeric match: what counts as the right answer, and what does not."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignment_core.errors import DataError
from alignment_plugins.evaluators.answers import ExactMatch, NumericMatch


def numeric(response: str, answer: Any, **settings: Any) -> float:
    return NumericMatch(**settings).score((), response, {"answer": answer})


GSM8K = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nShe sold 48+24 = <<48+24=72>>72 clips.\n#### 72"

RIGHT = [
    ("72", "72"),
    ("#### 72", GSM8K),
    ("In April 48, in May 24.\n#### 72", GSM8K),
    ("The answer is 72.", GSM8K),
    ("So she has **72** clips", "72"),
    ("it is _72_", "72"),
    ("#### 72 clips (of 100)", "72"),  # the first number after the marker
    ("#### 1\nWait.\n#### 72", "72"),  # the last marker
    ("= $72", "72"),
    ("$-5", "-5"),
    ("-$5", "-5"),
    ("\u22125", "-5"),
    ("+5", "5"),
    ("x=-5", "-5"),
    ("1,234,567 people", "1234567"),
    ("12,34,567 rupees", "1234567"),
    ("1\u202f234\u202f567", "1234567"),
    ("$1,000.50", "1000.5"),
    ("18.0", "18"),
    ("18.", "18"),
    (".5", "0.5"),
    ("0.50", "1/2"),
    ("1/2", "0.5"),
    ("-3 / 4", "-0.75"),
    ("1 1/2 cups", "1.5"),
    (r"\frac{3}{4}", "0.75"),
    (r"\dfrac{3}{4}", "0.75"),
    (r"so \boxed{42} and 7 is wrong", "42"),
    (r"\boxed{x = 42}", "42"),
    ("18km", "18"),
    ("5-3", "3"),  # a minus sign between numbers is no sign
    ("between 10-20", "20"),
    ("50%", "50"),
    ("50 %", "0.5"),
    ("0.5", "50%"),
    (r"50\%", "50"),
    ("1e3", "1000"),
    ("1.2E-3", "0.0012"),
    ("72", 72),
    ("72.5", 72.5),
    ("7", [6, "7"]),
    ("It was on 12/25/2024 that 7 came", "7"),
    ("We have 3, 4, 5", "5"),
]
WRONG = [
    ("", "72"),
    ("no number", "72"),
    ("720", "72"),
    ("7.2", "72"),
    ("-72", "72"),
    ("72 or 73", "72"),  # the last number is the answer
    ("#### 73\nI mean 72", "72"),  # the marker counts, not the last number
    ("####", "72"),
    ("#### none\n72", "72"),
    ("v72", "72"),
    ("H72O", "72"),
    ("1/0", "0"),
    ("72/0", "72"),
    ("3,14", "3.14"),
    ("1 000", "1000"),
    ("1.2.72", "72"),
    ("01/72", "72"),
    ("10:72", "72"),
    ("0.333", "1/3"),
    ("5%", "50"),
    ("1e999999999", "1"),
    ("9" * 100_000, "9"),
    ("\u0667\u0662", "72"),  # digits of other scripts
    ("seventy-two", "72"),
]


@pytest.mark.parametrize(("response", "answer"), RIGHT)
def test_right_numbers(response: str, answer: Any) -> None:
    assert numeric(response, answer) == 1.0


@pytest.mark.parametrize(("response", "answer"), WRONG)
def test_wrong_numbers(response: str, answer: Any) -> None:
    assert numeric(response, answer) == 0.0


def test_tolerance_is_a_share_of_the_right_number() -> None:
    assert numeric("101", "100", tolerance=0.01) == 1
    assert numeric("101.1", "100", tolerance=0.01) == 0
    assert numeric("-99", "-100", tolerance=0.01) == 1
    assert numeric("0.001", "0", tolerance=0.5) == 0


def test_the_marker_can_be_required_changed_and_left_out() -> None:
    assert numeric("72", "72", marker_required=True) == 0
    assert numeric("#### 72", "72", marker_required=True) == 1
    assert numeric("A: 1\nso 2", "A: 1", marker="A:") == 1
    assert numeric("#### 1 and 2", "2", marker="") == 1


@pytest.mark.parametrize("answer", ["none", "", [], None, True, [True], {"a": 1}, "1/0"])
def test_a_fact_without_a_number_is_an_error(answer: Any) -> None:
    with pytest.raises(DataError, match="answer"):
        numeric("1", answer)


def test_a_missing_fact_is_an_error_that_names_the_facts() -> None:
    with pytest.raises(DataError, match=r"got facts tests, expected answer"):
        NumericMatch().score((), "1", {"tests": []})
    assert NumericMatch().needed_facts() == ("answer",)


def test_a_fact_may_be_inside_of_a_column() -> None:
    rule = NumericMatch(fact="reward_model.ground_truth")
    assert rule.score((), "7", {"reward_model": {"ground_truth": "7"}}) == 1
    assert rule.needed_facts() == ("reward_model",)
    assert NumericMatch(fact="a.b").score((), "7", {"a.b": "7"}) == 1  # a column whose name has a point
    with pytest.raises(DataError):
        rule.score((), "7", {"reward_model": "7"})


@pytest.mark.parametrize("text", ["-" * 200_000, "1," * 100_000, "1/" * 100_000, "$" * 200_000, "1 " * 100_000,
                                  "\\frac{1}{" * 20_000, "#### " * 40_000, ". " * 100_000])  # fmt: skip
def test_hostile_text_takes_little_time(text: str) -> None:
    from time import perf_counter

    start = perf_counter()
    assert numeric(text, "72") == 0
    assert perf_counter() - start < 3


def test_verdicts_on_gsm8k_are_those_of_its_authors(shared_data: Path) -> None:
    """900 problems with four solutions each, which the authors of GSM8K checked with their own program."""
    rule, seen = NumericMatch(fact="ground_truth", marker="A:"), Counter[bool]()
    with (shared_data / "feedback_unpaired" / "gsm8k_model_solutions.rows0000-0899.jsonl").open() as file:
        for row in map(json.loads, file):
            for solution in (value for value in row.values() if isinstance(value, dict)):
                assert rule.score((), solution["solution"], row) == solution["is_correct"], row["question"]
                seen[solution["is_correct"]] += 1
    assert seen == {True: 1392, False: 2208}


EXACT = [
    ("Paris", "Paris", {}, 1),
    (" Paris\n", "Paris", {}, 1),
    ("the  Seine\nriver", "the Seine river", {}, 1),
    ("paris", "Paris", {}, 0),
    ("paris", "Paris", {"ignore_case": True}, 1),
    ("STRASSE", "straße", {"ignore_case": True}, 1),
    ("Paris.", "Paris", {}, 0),
    ("Paris.", "Paris", {"ignore_punctuation": True}, 1),
    ("**Paris**!", "Paris", {"ignore_punctuation": True}, 1),
    ("Pa-ris", "Paris", {"ignore_punctuation": True}, 0),
    ("It is Paris", "Paris", {}, 0),
    ("I think\nA: Paris", "Paris", {"marker": "A:"}, 1),
    ("Paris", "Paris", {"marker": "A:"}, 0),
    ("A: Rome A: Paris", "so A: Paris", {"marker": "A:"}, 1),
    ("e\u0301t\u00e9", "\u00e9t\u00e9", {}, 1),
    ("7", 7, {}, 1),
    ("7", ["8", 7], {}, 1),
    ("7.0", 7, {}, 0),
    ("", "Paris", {}, 0),
]


@pytest.mark.parametrize(("response", "answer", "settings", "score"), EXACT)
def test_exact_match(response: str, answer: Any, settings: dict[str, Any], score: float) -> None:
    assert ExactMatch(**settings).score((), response, {"answer": answer}) == score


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValidationError):
        NumericMatch(tolerance=-1)
