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


class Silent:
    """Progress that discards every report."""

    stopping = False

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        pass

    def log(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        pass
