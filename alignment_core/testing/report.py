"""The report of the conformance kit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["passed", "failed", "warning", "not run"]


class Fault(Exception):
    """Raised by a check to describe how the contract is broken."""


@dataclass(frozen=True)
class Result:
    """The result of one check: its name, its outcome, and the reason or the measured numbers."""

    check: str
    outcome: Outcome
    detail: str


@dataclass
class Report:
    """All results for one optimizer."""

    optimizer: str
    results: list[Result] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every check passed or only gave a warning."""
        return all(result.outcome in ("passed", "warning") for result in self.results)

    def assert_passed(self) -> None:
        """Assert in a test that all checks passed.

        Raises:
            AssertionError: a check failed or did not run. The message has one line per check with its reason.
        """
        bad = [result for result in self.results if result.outcome not in ("passed", "warning")]
        assert not bad, "\n".join([f"{self.optimizer} breaks the contract:", *(f"{r.check}: {r.detail}" for r in bad)])

    def add(self, check: str, outcome: Outcome, detail: str = "") -> None:
        """Add a result."""
        self.results.append(Result(check, outcome, detail))

    @contextmanager
    def checking(self, name: str) -> Iterator[list[str]]:
        """Run a check. An exception in the block makes it fail. Items added to the yielded list become its detail."""
        shown: list[str] = []
        try:
            yield shown
        except Exception as error:
            self.add(name, "failed", str(error) if isinstance(error, Fault) else f"{type(error).__name__}: {error}")
        else:
            self.add(name, "passed", "; ".join(shown))
