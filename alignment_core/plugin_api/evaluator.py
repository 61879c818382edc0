"""Evaluators, which score responses."""

from __future__ import annotations

from alignment_core.config import Settings
from alignment_core.records import Conversation


class Evaluator(Settings):
    """Base class of a rule or program that scores one response.

    A subclass fixes `name` as a `Literal` and defines `score`.
    """

    name: str

    def score(self, prompt: Conversation, response: str) -> float:
        """Return the score of a response. Higher is better. A yes/no rule returns 1.0 or 0.0."""
        raise NotImplementedError
