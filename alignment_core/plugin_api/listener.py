"""Listeners, which receive the progress and metrics of every stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from alignment_core.config import Settings


@dataclass(frozen=True, slots=True)
class StageInfo:
    """Identifies one stage of one run."""

    run: str
    """Name of the run."""
    stage: str
    """Name of the stage."""
    label: str
    """Label to display."""
    key: str
    """Cache key, which is also the key of the artifact."""
    settings: Mapping[str, Any]
    """The settings that determine the result, as plain JSON."""
    folder: Path
    """Folder of the artifact. It exists once the stage is finished."""


class Listener(Settings):
    """Base class of a listener, which receives the progress and metrics of every stage.

    A listener can send them anywhere, for example to an experiment tracker. It does not affect results and does not
    enter cache keys. A subclass fixes `name` as a `Literal` and overrides the methods for the events that it needs.

    Listeners run in the flow's process, with one instance per stage. If one raises an exception, a warning is shown,
    and that instance receives no more events.
    """

    example: ClassVar[Mapping[str, Any]] = {}
    """Settings that describe and check the listener where no user has chosen any, as for an optimizer."""

    name: str

    def started(self, stage: StageInfo) -> None:
        """Called before the stage is built. Not called for a stage that is found in the artifact store."""

    def step(self, stage: StageInfo, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Called when `done` of `total` units are finished. `metrics` holds the latest values."""

    def finished(self, stage: StageInfo, metrics: Mapping[str, Any], *, cached: bool) -> None:
        """Called when the artifact exists.

        Args:
            stage: the stage.
            metrics: the stage's metrics from when it was built, as plain JSON.
            cached: whether the artifact was found in the store or built by another run.
        """

    def failed(self, stage: StageInfo, error: str) -> None:
        """Called when the stage failed or was stopped."""
