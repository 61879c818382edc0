"""An evaluator that runs the code in a response against the tests of its prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from alignment_core.plugin_api import Conversation, DataError, Evaluator, Facts, hookimpl
from alignment_plugins.evaluators.facts import column_of, fact_of
from alignment_plugins.evaluators.sandbox import Limits, ends_well, run_program

_FENCED = re.compile(r"(?ims)^[ \t]*```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)^[ \t]*```")
REMEMBERED = 4096
"""Number of results that are kept. Responses often repeat."""


class UnitTests(Evaluator):
    """Runs the Python code of the response with the tests of its prompt. The code was written by a model and runs on
    this machine, as this user: read about the sandbox before you use it."""

    model_config = ConfigDict(title="Unit tests")

    example_facts: ClassVar[Facts] = {"tests": "assert True"}
    name: Literal["unit_tests"] = "unit_tests"
    fact: str = "tests"
    """The kept column with the tests: Python code, a list of pieces of Python code that each is one test, or a list of
    `{input, output}`: what the program reads and what it must print. `column.key` is a key of an object."""
    partial: bool = True
    """Score the share of the tests that pass. Off: score 1 if all pass, else 0."""
    seconds: float = Field(5.0, gt=0, le=600)
    """Time limit of one test."""
    memory_mb: int = Field(512, ge=64)
    """Memory limit of one test in MiB of address space."""
    parallel: int = Field(4, ge=1)
    """Number of responses that are tested at a time."""

    def scores(self, prompts: Sequence[Conversation], responses: Sequence[str], facts: Sequence[Facts]) -> list[float]:
        cases = [(code_in(response), self._tests(known)) for response, known in zip(responses, facts, strict=True)]
        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(lambda case: self._score(*case), cases))

    def _tests(self, facts: Facts) -> list[tuple[str, str | None]]:
        """Return each test as code to run after the response and None, or as input and expected output."""
        found = fact_of(facts, self.fact)
        tests = [_test(item) for item in (found if isinstance(found, list) else [found])]
        if not tests or None in tests:
            raise DataError(
                f"the fact `{self.fact}` holds no tests",
                got=repr(found)[:80],
                expected="Python code, a list of such texts, or a list of {input, output}",
            )
        return [test for test in tests if test is not None]

    def _score(self, code: str, tests: Sequence[tuple[str, str | None]]) -> float:
        if not code.strip():
            return 0.0
        limits = Limits(self.seconds, self.memory_mb)
        passed = 0
        for given, expected in tests:
            if _passes(code, given, expected, limits):
                passed += 1
            elif not self.partial:
                return 0.0
        return passed / len(tests)

    def needed_facts(self) -> Sequence[str]:
        return (column_of(self.fact),)


def code_in(response: str) -> str:
    """Return the code of the last fenced block of a response, or the whole response if it has none."""
    blocks = _FENCED.findall(response)
    return blocks[-1] if blocks else response


def _test(item: Any) -> tuple[str, str | None] | None:
    if isinstance(item, str) and item.strip():
        return item, None
    if isinstance(item, Mapping) and {"input", "output"} <= item.keys():
        return str(item["input"]), str(item["output"])
    return None


@lru_cache(REMEMBERED)
def _passes(code: str, given: str, expected: str | None, limits: Limits) -> bool:
    if expected is None:
        return ends_well(f"{code}\n\n{given}\n", limits)
    printed = run_program(code, given, limits)
    return printed is not None and _lines(printed) == _lines(expected)


def _lines(text: str) -> list[str]:
    """Return the lines without the spaces at their ends and without empty lines at the end."""
    return [line.rstrip() for line in text.rstrip().splitlines()]


@hookimpl
def alignment_evaluators() -> list[type[Evaluator]]:
    return [UnitTests]
