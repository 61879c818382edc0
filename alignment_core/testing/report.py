"""The report of the conformance kit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from alignment_core.errors import AlignmentError
from alignment_core.plugin_calls import last_lines, summary
from alignment_core.testing.limits import CHECK_SECONDS, Overheard, TookTooLong, time_limit

Outcome = Literal["passed", "failed", "warning", "not run"]


class Fault(Exception):
    """Raised by a check to describe how the contract is broken."""


class Doubt(Exception):
    """Raised by a check to describe what may be a mistake."""


@dataclass(frozen=True)
class Result:
    """The result of one check: its name, its outcome, and the reason or the measured numbers."""

    check: str
    outcome: Outcome
    detail: str


@dataclass
class Report:
    """All results for one plugin.

    Attributes:
        plugin: name of its class.
        results: the results, in the order of the checks.
    """

    plugin: str
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
        assert not bad, "\n".join([f"{self.plugin} breaks the contract:", *(f"{r.check}: {r.detail}" for r in bad)])

    def add(self, check: str, outcome: Outcome, detail: str = "") -> None:
        """Add a result."""
        self.results.append(Result(check, outcome, detail))

    @contextmanager
    def checking(self, name: str, seconds: float = CHECK_SECONDS) -> Iterator[list[str]]:
        """Run a check. An exception in the block makes it fail. Items added to the yielded list become its detail."""
        shown: list[str] = []
        try:
            with time_limit(seconds, f"the check `{name}`"):
                yield shown
        except Doubt as doubt:
            self.add(name, "warning", str(doubt))
        except (Exception, TookTooLong) as error:
            self.add(name, "failed", reason(error))
        else:
            self.add(name, "passed", "; ".join(shown))

    def add_output(self, heard: Overheard) -> None:
        """Add the result of what the plugin printed while it was checked."""
        if line := heard.first_line():
            self.add("output", "warning", f"it prints, which nobody sees in a run. The first line: {line[:80]}")
        else:
            self.add("output", "passed")


def reason(error: BaseException) -> str:
    """Return why a check failed. An unexpected exception is shown with the last lines of its traceback."""
    if isinstance(error, Fault | AlignmentError | TookTooLong):
        return str(error)
    return f"{summary(error)}\n{last_lines(error)}"
