"""How a stage tells the world what it is doing, whoever listens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Stopped(BaseException):
    """Raised by a stage that was asked to stop, once its checkpoint is written. Not an error: a later run goes on."""


class Progress(Protocol):
    """Given to everything that takes long. A stage's process sends each call to the flow over a pipe."""

    @property
    def stopping(self) -> bool:
        """True once the stage is asked to stop (SIGTERM): write a checkpoint, then raise `Stopped`. It has 20 s."""

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """`done` of `total` units are finished; `metrics` are the newest values, if there are any."""

    def log(self, message: str) -> None:
        """A fact worth a line."""

    def warn(self, message: str) -> None:
        """Something a person should look at; counted and kept in the stage's metrics as `warnings`."""


class Silent:
    """Progress that nobody listens to."""

    stopping = False

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        pass

    def log(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        pass
