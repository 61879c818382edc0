"""Evaluators that each violate one rule of the contract."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from alignment_core.plugin_api import Conversation, Evaluator, Facts, PairEvaluator


class Sound(Evaluator):
    """Counts the words of the answer that the response has."""

    example_facts: ClassVar[Facts] = {"answer": "42 apples"}
    name: Literal["sound"] = "sound"
    points: float = 1.0
    """Score of a word."""

    def needed_facts(self) -> Sequence[str]:
        return ["answer"]

    def score(self, prompt: Conversation, response: str, facts: Facts) -> float:
        return self.points * sum(word in response for word in str(facts["answer"]).split())


class NoFacts(Sound):
    """Does not say what its facts look like."""

    example_facts: ClassVar[Facts] = {}


class OddFacts(Sound):
    """Names its facts in one text."""

    def needed_facts(self) -> Any:
        return "answer"


class FailsOnBlanks(Sound):
    """Expects a word."""

    def score(self, prompt: Conversation, response: str, facts: Facts) -> float:
        return float(response.split()[0] == facts["answer"])


class Unlimited(Sound):
    """Gives an infinite score."""

    def score(self, prompt: Conversation, response: str, facts: Facts) -> float:
        return float("inf") if len(response) > 1000 else 0.0


class Counts(Sound):
    """Returns one score for all."""

    def scores(self, prompts: Sequence[Conversation], responses: Sequence[str], facts: Sequence[Facts]) -> list[float]:
        return [1.0]


class Changes(Sound):
    """Changes the facts."""

    def score(self, prompt: Conversation, response: str, facts: Any) -> float:
        facts["seen"] = True
        return 1.0


class Ranks(Sound):
    """Scores a response by its place among the others."""

    def scores(self, prompts: Sequence[Conversation], responses: Sequence[str], facts: Sequence[Facts]) -> list[float]:
        return [float(sorted(responses).index(response)) for response in responses]


class Throws(Sound):
    """Throws dice."""

    def score(self, prompt: Conversation, response: str, facts: Facts) -> float:
        return random.random()


class ReadsMore(Sound):
    """Reads a fact that it does not name."""

    def score(self, prompt: Conversation, response: str, facts: Facts) -> float:
        return float(facts.get("hint") is None)


class SoundPair(PairEvaluator):
    """Prefers the shorter response."""

    name: Literal["sound-pair"] = "sound-pair"

    def prefer(self, prompt: Conversation, a: str, b: str, facts: Facts) -> float:
        return 0.5 if len(a) == len(b) else float(len(a) < len(b))


class Certain(SoundPair):
    """Is more than certain."""

    def prefer(self, prompt: Conversation, a: str, b: str, facts: Facts) -> float:
        return 1.5


class PrefersTheFirst(SoundPair):
    """Is biased."""

    def prefer(self, prompt: Conversation, a: str, b: str, facts: Facts) -> float:
        return 0.75


FAULTS: dict[type[Evaluator | PairEvaluator], tuple[str, str, str]] = {
    NoFacts: ("facts", "failed", "it needs answer, and there is no such fact. Give the class some, such as"),
    OddFacts: ("facts", "failed", "`needed_facts` returns 'answer', not a list of names"),
    FailsOnBlanks: (
        "judges",
        "failed",
        "sound, row an empty response to a question: an evaluator failed. got In",
    ),
    Unlimited: (
        "judges",
        "failed",
        "sound, row a long response to a question: an evaluator gave an unusable",
    ),
    Counts: ("judges", "failed", "wrong number of scores. got 1, expected 14"),
    Changes: ("judges", "failed", "it changes the prompts or facts that it is given"),
    Ranks: ("alone and together", "warning", "when it is judged alone and together with others"),
    Throws: ("repeats", "warning", "when it is judged twice"),
    ReadsMore: ("declared facts", "warning", "it reads hint, which `needed_facts` does not name"),
    Certain: ("judges", "failed", "got 1.5 for the response 'It is 42.', expected a probability from 0 to 1"),
    PrefersTheFirst: ("order", "warning", "a sentence to a question gets 0.75 and 0.25 when it is as the first and"),
}
"""The check that must find each fault, its outcome, and part of its message."""
