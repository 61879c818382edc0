"""The interface through which a stage reports its progress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Stopped(BaseException):
    """Raised by a stage that was asked to stop, after it wrote its checkpoint. Not an error: a later run resumes."""


class Progress(Protocol):
    """Passed to everything that takes long. A stage's process sends each call to the flow over a pipe."""

    @property
    def stopping(self) -> bool:
        """True once the stage is asked to stop (SIGTERM). It has 20 s to write a checkpoint and raise `Stopped`."""

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """Report that `done` of `total` units are finished. `metrics` are the newest values, if any."""

    def log(self, message: str) -> None:
        """Log one line."""

    def warn(self, message: str) -> None:
        """Report something that a user should look at. Warnings are counted and stored in the metrics as `warnings`."""


class Work:
    """What a stage without optimizer steps has done, as one count: sequences that were read, responses, scores."""

    def __init__(self, progress: Progress, total: int) -> None:
        """
        Args:
            progress: what is told about every further unit.
            total: all units. What is repeated, because memory ended, is not in it and never completes it.
        """
        self._progress, self._total = progress, total
        self._done = self._begun = self._told = 0

    def expect(self, units: int) -> None:
        """Add units to the total."""
        self._total += units

    def begin(self, units: int) -> None:
        """Begin further units. Those that were begun before are finished."""
        self.add(0)
        self._begun = units

    def add(self, units: int) -> None:
        """Report that further units are finished, and those that were begun."""
        self._done = min(self._done + self._begun + units, self._total)
        self._begun = 0
        self.at(0)

    def at(self, units: float) -> None:
        """Report that units are finished which will be added together at their end."""
        reached = min(self._done + int(units), self._total)
        if reached > self._told:
            self._told = reached
            self._progress.step(reached, self._total)

    def end(self) -> None:
        """Report that everything is finished."""
        self.add(self._total)


class Silent:
    """Progress that discards every report."""

    stopping = False

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        pass

    def log(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        pass
