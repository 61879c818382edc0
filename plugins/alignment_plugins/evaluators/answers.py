"""Evaluators that compare a response with the right answer, which the prompt's record knows."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from alignment_core.plugin_api import Conversation, DataError, Evaluator, Facts, hookimpl
from alignment_plugins.evaluators.facts import answers_of, column_of
from alignment_plugins.evaluators.numbers import Number, answer_in


class NumericMatch(Evaluator):
    """Scores 1 if the response gives the right number, else 0. Made for answers like those of GSM8K."""

    model_config = ConfigDict(title="Numeric match")
    example_facts: ClassVar[Facts] = {"answer": "42"}

    name: Literal["numeric_match"] = "numeric_match"
    fact: str = "answer"
    """The kept column with the right answer: a number, a text that gives one in the same way, or a list of them.
    `column.key` is a key of an object."""
    marker: str = "####"
    r"""The answer is the first number after the last marker. Without a marker it is the last number of the last
    `\boxed{…}`, else the last number of the text. Empty: there is no marker."""
    marker_required: bool = False
    """A response without the marker scores 0."""
    tolerance: float = Field(0.0, ge=0)
    """Largest difference that counts as equal, as a share of the right number."""

    def score(self, prompt: Conversation, response: str, facts: Facts) -> float:
        right = [self._right(answer) for answer in answers_of(facts, self.fact)]
        if self.marker_required and self.marker not in response:
            return 0.0
        given = answer_in(response, self.marker)
        return float(given is not None and any(given.equals(number, self.tolerance) for number in right))

    def _right(self, answer: str) -> Number:
        number = answer_in(answer, self.marker)
        if number is None:
            raise DataError(f"the fact `{self.fact}` gives no number", got=repr(answer)[:80])
        return number

    def needed_facts(self) -> Sequence[str]:
        return (column_of(self.fact),)


class ExactMatch(Evaluator):
    """Scores 1 if the response is the right answer, else 0. Spaces around the answer do not count."""

    model_config = ConfigDict(title="Exact match")
    example_facts: ClassVar[Facts] = {"answer": "42"}

    name: Literal["exact_match"] = "exact_match"
    fact: str = "answer"
    """The kept column with the right answer: a text, a number, or a list of them. `column.key` is a key of an
    object."""
    marker: str = ""
    """Compare only the text after the last marker in the response and in the right answer. Empty: all of it."""
    ignore_case: bool = False
    """Ignore the difference between upper and lower case."""
    ignore_punctuation: bool = False
    """Leave out everything but letters, digits and the spaces between them."""

    def score(self, prompt: Conversation, response: str, facts: Facts) -> float:
        if self.marker and self.marker not in response:
            return 0.0
        given = self._plain(response)
        return float(any(given == self._plain(answer) for answer in answers_of(facts, self.fact)))

    def _plain(self, text: str) -> str:
        if self.marker:
            text = text.rpartition(self.marker)[2]
        text = unicodedata.normalize("NFC", text)
        if self.ignore_case:
            text = text.casefold()
        if self.ignore_punctuation:
            text = re.sub(r"[^\w\s]|_", " ", text)
        return " ".join(text.split())

    def needed_facts(self) -> Sequence[str]:
        return (column_of(self.fact),)


@hookimpl
def alignment_evaluators() -> list[type[Evaluator]]:
    return [ExactMatch, NumericMatch]
