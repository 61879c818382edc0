"""The texts of the demo, scored by the evaluator that also scores the models."""

from __future__ import annotations

import random

import pytest

from alignment_core.registry import load_registry
from alignment_core.stages.shared.demo_texts import (
    ADJECTIVE_SHARES,
    ANIMAL_IS_RIGHT,
    ANIMALS,
    COLOUR_IS_RIGHT,
    COLOURS,
    REQUESTS,
    TRUE_RULE,
    answer,
    demonstrations,
)

PROMPT = ({"role": "user", "content": "tell me about the red fox"},)


@pytest.mark.parametrize(
    ("response", "good"),
    [
        ("the red fox is kind .", True),
        ("the red fox is small . people say it is brave .", True),
        ("the blue fox is kind .", False),
        ("the red cat is kind .", False),
        ("the red fox is small .", False),
        ("the red fox is kind . people say it is ugly .", False),
        ("", False),
    ],
)
def test_true_rule_requires_the_requested_animal_and_a_kind_word(response: str, good: bool) -> None:
    assert load_registry().evaluator(TRUE_RULE).score(PROMPT, response, {}) == float(good)


def test_flawed_texts_satisfy_the_rule_at_the_expected_rate() -> None:
    kind, neutral, _ = ADJECTIVE_SHARES
    # With two adjectives, neither may be rude and at least one must be kind.
    two = (kind + neutral) ** 2 - neutral**2
    colour = COLOUR_IS_RIGHT + (1 - COLOUR_IS_RIGHT) / len(COLOURS)
    animal = ANIMAL_IS_RIGHT + (1 - ANIMAL_IS_RIGHT) / len(ANIMALS)
    expected = colour * animal * (0.6 * kind + 0.4 * two)
    rule, noise, count = load_registry().evaluator(TRUE_RULE), random.Random(0), 4000
    found = sum(rule.score(PROMPT, answer("red", "fox", noise), {}) for _ in range(count)) / count
    assert found == pytest.approx(expected, abs=4 * (expected * (1 - expected) / count) ** 0.5)


def test_every_request_is_demonstrated_once() -> None:
    asked = [row["messages"][0]["content"] for row in demonstrations(0)]
    assert len(asked) == len(set(asked)) == len(REQUESTS) * len(COLOURS) * len(ANIMALS)
