"""Who is told how a stage goes: the flow's own progress, and the listeners that the settings name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from alignment_core.errors import AlignmentError
from alignment_core.plugin_api import Listener, StageInfo
from alignment_core.progress import Progress
from alignment_core.registry import load_registry
from alignment_core.stages.base import StageCall


class Audience:
    """Progress that the listeners hear too. One that raises is told no more of this stage, and the stage goes on.

    Attributes:
        faults: what listeners raised, in words.
    """

    def __init__(self, call: StageCall, progress: Progress) -> None:
        """
        Args:
            call: the stage; its runtime names the listeners.
            progress: the flow's own.

        Raises:
            PluginError, ConfigError: a listener is not installed here, or its settings do not fit.
        """
        registry = load_registry() if call.runtime.listeners else None
        self._listeners = [registry.listener(raw) for raw in call.runtime.listeners] if registry else []
        folder = call.runtime.store / call.stage / call.key
        self._stage = StageInfo(call.runtime.run, call.stage, call.label, call.key, call.config, folder)
        self._progress = progress
        self.faults: list[str] = []

    @property
    def stopping(self) -> bool:
        return self._progress.stopping

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        self._progress.step(done, total, metrics)
        self._tell(lambda listener: listener.step(self._stage, done, total, metrics or {}))

    def log(self, message: str) -> None:
        self._progress.log(message)

    def warn(self, message: str) -> None:
        self._progress.warn(message)

    def started(self) -> None:
        self._tell(lambda listener: listener.started(self._stage))

    def finished(self, metrics: Mapping[str, Any], *, cached: bool) -> None:
        self._tell(lambda listener: listener.finished(self._stage, metrics, cached=cached))

    def failed(self, error: BaseException) -> None:
        said = str(error) if isinstance(error, AlignmentError) else f"{type(error).__name__}: {error}"
        self._tell(lambda listener: listener.failed(self._stage, said))

    def _tell(self, news: Callable[[Listener], None]) -> None:
        for listener in list(self._listeners):
            try:
                news(listener)
            except Exception as error:
                # Hours of training must not end because a dashboard is away.
                self._listeners.remove(listener)
                fault = f"{type(error).__name__}: {error}"
                self.faults.append(f"`{listener.name}`: {fault}")
                self._progress.warn(f"the listener `{listener.name}` failed and hears no more of this stage: {fault}")
