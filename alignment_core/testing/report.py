"""What the kit found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["passed", "failed", "warning", "not run"]


class Fault(Exception):
    """Raised by a check: the contract is broken, and how."""


@dataclass(frozen=True)
class Result:
    """One check: its name, what came of it, and the reason or the measured numbers."""

    check: str
    outcome: Outcome
    detail: str


@dataclass
class Report:
    """All results on one optimizer."""

    optimizer: str
    results: list[Result] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether no check failed; warnings do not count."""
        return all(result.outcome in ("passed", "warning") for result in self.results)

    def assert_passed(self) -> None:
        """For pytest.

        Raises:
            AssertionError: some check failed; the message has one line for each, with its reason.
        """
        bad = [result for result in self.results if result.outcome not in ("passed", "warning")]
        assert not bad, "\n".join([f"{self.optimizer} breaks the contract:", *(f"{r.check}: {r.detail}" for r in bad)])

    def add(self, check: str, outcome: Outcome, detail: str = "") -> None:
        """One more result."""
        self.results.append(Result(check, outcome, detail))

    @contextmanager
    def checking(self, name: str) -> Iterator[list[str]]:
        """A check: what is raised inside is its failure; what is put into the list is shown."""
        shown: list[str] = []
        try:
            yield shown
        except Exception as error:
            self.add(name, "failed", str(error) if isinstance(error, Fault) else f"{type(error).__name__}: {error}")
        else:
            self.add(name, "passed", "; ".join(shown))
