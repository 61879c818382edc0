"""Ask evaluators for scores and verdicts, and check what they answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignment_core.errors import AlignmentError, PluginError
from alignment_core.plugin_api import Conversation, Evaluator, Facts, PairEvaluator
from alignment_core.plugin_calls import last_lines
from alignment_core.progress import Stopped

SHOWN = 80
"""Characters of a response that an error shows."""


@dataclass
class Cases:
    """Responses to judge.

    Attributes:
        rows: names of the rows that the prompts are from, for error messages.
        prompts: the conversation before each response.
        facts: the facts of each prompt.
        responses: the responses, or the first responses of pairs.
        others: the second responses of pairs.
    """

    rows: list[str] = field(default_factory=list)
    prompts: list[Conversation] = field(default_factory=list)
    facts: list[Facts] = field(default_factory=list)
    responses: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: str, prompt: Conversation, facts: Facts, response: str, other: str | None = None) -> None:
        """Append a response, or a pair of them."""
        self.rows.append(row)
        self.prompts.append(prompt)
        self.facts.append(facts)
        self.responses.append(response)
        if other is not None:
            self.others.append(other)

    def only(self, index: int) -> Cases:
        """Return one of the cases alone."""
        columns = (self.rows, self.prompts, self.facts, self.responses, self.others)
        return Cases(*(column[index : index + 1] for column in columns))  # type: ignore[arg-type]


def scores_of(evaluator: Evaluator, cases: Cases) -> list[float | None]:
    """Return the evaluator's score of each response. None: it gave none.

    Raises:
        PluginError: the evaluator raised an error, or a score is not a finite number. The message names the evaluator
            and the row.
        AlignmentError: the evaluator reported a mistake of the user.
    """

    def ask(some: Cases) -> Sequence[Any]:
        return evaluator.scores(some.prompts, some.responses, some.facts)

    return [
        None if value is None else _number(evaluator.name, value, cases, i)
        for i, value in enumerate(_answers(evaluator.name, ask, cases))
    ]


def preferences_of(evaluator: PairEvaluator, cases: Cases) -> list[float | None]:
    """Return the probability that the first response of each pair is better. None: the evaluator gave no verdict.

    Raises:
        PluginError: the evaluator raised an error, or a verdict is not a number from 0 to 1.
        AlignmentError: the evaluator reported a mistake of the user.
    """

    def ask(some: Cases) -> Sequence[Any]:
        return evaluator.prefers(some.prompts, some.responses, some.others, some.facts)

    found: list[float | None] = []
    for i, value in enumerate(_answers(evaluator.name, ask, cases)):
        number = None if value is None else _number(evaluator.name, value, cases, i)
        if number is not None and not 0 <= number <= 1:
            raise _unusable(evaluator.name, value, cases, i, "a probability from 0 to 1")
        found.append(number)
    return found


def _answers(name: str, ask: Callable[[Cases], Sequence[Any]], cases: Cases) -> list[Any]:
    if not len(cases):
        return []
    try:
        found = list(ask(cases))
    except Stopped:
        raise
    except Exception as error:
        raise _failed(name, ask, cases, error) from error
    if len(found) != len(cases):
        raise PluginError(
            "an evaluator returned the wrong number of scores", where=name, got=len(found), expected=len(cases)
        )
    return found


def _failed(name: str, ask: Callable[[Cases], Sequence[Any]], cases: Cases, error: Exception) -> AlignmentError:
    """Return the error of a failed evaluator. It names the first response on which the evaluator fails alone."""
    where = name
    for index in range(len(cases)):
        try:
            ask(cases.only(index))
        except Exception as alone:
            error, where = alone, f"{name}, row {cases.rows[index]}"
            break
    if isinstance(error, AlignmentError):
        return type(error)(error.what, where=where, got=error.got, expected=error.expected, do=error.do)
    got = f"{type(error).__name__}: {error}"
    do = f"The last lines of the traceback:\n{last_lines(error)}"
    return PluginError("an evaluator failed", where=where, got=got, do=do)


def _number(name: str, value: Any, cases: Cases, index: int) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise _unusable(name, value, cases, index, "a number") from None
    if isinstance(value, str) or not math.isfinite(number):
        raise _unusable(name, value, cases, index, "a finite number")
    return number


def _unusable(name: str, value: Any, cases: Cases, index: int, expected: str) -> PluginError:
    response = cases.responses[index]
    shown = response if len(response) <= SHOWN else f"{response[:SHOWN]}…"
    return PluginError(
        "an evaluator gave an unusable score",
        where=f"{name}, row {cases.rows[index]}",
        got=f"{value!r} for the response {shown!r}",
        expected=expected,
    )
