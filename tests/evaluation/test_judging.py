"""What evaluators answer is checked: each error names the evaluator and the row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import pytest
from pydantic import Field

from alignment_core.errors import DataError, PluginError
from alignment_core.evaluation.judging import Cases, preferences_of, scores_of
from alignment_core.plugin_api import Conversation, Evaluator, Facts, PairEvaluator


class Scripted(Evaluator):
    """Returns what its script says for the response."""

    name: Literal["scripted"] = "scripted"
    script: dict[str, Any] = Field(default_factory=dict)

    def score(self, prompt: Conversation, response: str, facts: Facts) -> float:
        found = self.script.get(response, 1.0)
        if isinstance(found, Exception):
            raise found
        return found  # type: ignore[no-any-return]


class Batched(Evaluator):
    """Scores by the facts, several at once."""

    name: Literal["batched"] = "batched"

    def scores(self, prompts: Any, responses: Any, facts: Sequence[Facts]) -> list[float | None]:
        return [known.get("score") for known in facts]


class Longer(PairEvaluator):
    """Prefers the longer response."""

    name: Literal["longer"] = "longer"
    surety: float = 1.0

    def prefer(self, prompt: Conversation, a: str, b: str, facts: Facts) -> float:
        return self.surety if len(a) > len(b) else 1 - self.surety if len(a) < len(b) else 0.5


def cases(*responses: str, facts: Sequence[Facts] = ()) -> Cases:
    made = Cases()
    for i, response in enumerate(responses):
        made.add(f"row-{i}", ({"role": "user", "content": "?"},), facts[i] if facts else {}, response)
    return made


def test_scores_in_order() -> None:
    rule = Scripted(script={"a": True, "b": 2, "c": -0.5})
    assert scores_of(rule, cases("a", "b", "c", "d")) == [1.0, 2.0, -0.5, 1.0]
    assert scores_of(rule, cases()) == []
    facts = [{"score": 1}, {}, {"score": 3}]
    assert scores_of(Batched(), cases("x", "y", "z", facts=facts)) == [1.0, None, 3.0]
    assert Batched().score((), "x", {"score": 2}) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", "high", [1], object()])
def test_unusable_scores_name_evaluator_row_and_response(value: Any) -> None:
    rule = Scripted(script={"bad": value})
    with pytest.raises(PluginError, match=r"scripted, row row-1: .*for the response 'bad'"):
        scores_of(rule, cases("good", "bad"))


def test_an_error_in_an_evaluator_names_the_first_row_on_which_it_fails() -> None:
    rule = Scripted(script={"bad": ZeroDivisionError("by zero"), "worse": KeyError("x")})
    with pytest.raises(PluginError, match=r"scripted, row row-2: an evaluator failed. got ZeroDivisionError: by zero"):
        scores_of(rule, cases("a", "b", "bad", "worse"))


def test_a_mistake_of_the_user_names_the_row() -> None:
    rule = Scripted(script={"bad": DataError("the prompt lacks a fact", got="no facts", expected="answer")})
    with pytest.raises(DataError, match=r"scripted, row row-1: the prompt lacks a fact. got no facts, expected answer"):
        scores_of(rule, cases("a", "bad"))


def test_the_number_of_scores_is_checked() -> None:
    class Short(Batched):
        def scores(self, prompts: Any, responses: Any, facts: Any) -> list[float | None]:
            return [1.0]

    with pytest.raises(PluginError, match=r"wrong number of scores. got 1, expected 2"):
        scores_of(Short(), cases("a", "b"))


def test_preferences() -> None:
    made = Cases()
    for a, b in (("aa", "b"), ("a", "bb"), ("a", "b")):
        made.add("row", (), {}, a, b)
    assert preferences_of(Longer(), made) == [1.0, 0.0, 0.5]
    assert preferences_of(Longer(surety=0.8), made) == pytest.approx([0.8, 0.2, 0.5])
    with pytest.raises(PluginError, match=r"longer, row row: .*expected a probability from 0 to 1"):
        preferences_of(Longer(surety=1.5), made)
