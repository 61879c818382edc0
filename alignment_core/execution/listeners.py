"""Forward the events of a stage to the flow's progress and to the listeners in the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from alignment_core.addresses import hide_secrets
from alignment_core.errors import AlignmentError
from alignment_core.execution.stage import StageCall
from alignment_core.plugin_api import Listener, StageInfo
from alignment_core.progress import Progress
from alignment_core.registry import load_registry


class ListeningProgress:
    """Progress that also notifies the listeners. A listener that raises gets no more events, and the stage continues.

    Attributes:
        faults: the errors that listeners raised, as text.
    """

    def __init__(self, call: StageCall, progress: Progress) -> None:
        """
        Args:
            call: the stage call. Its runtime names the listeners.
            progress: the progress of the flow.

        Raises:
            PluginError, ConfigError: a listener is not installed, or its settings are invalid.
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
        self._notify(lambda listener: listener.step(self._stage, done, total, metrics or {}))

    def log(self, message: str) -> None:
        self._progress.log(hide_secrets(message))

    def warn(self, message: str) -> None:
        self._progress.warn(hide_secrets(message))

    def started(self) -> None:
        self._notify(lambda listener: listener.started(self._stage))

    def finished(self, metrics: Mapping[str, Any], *, cached: bool) -> None:
        self._notify(lambda listener: listener.finished(self._stage, metrics, cached=cached))

    def failed(self, error: BaseException) -> None:
        message = str(error) if isinstance(error, AlignmentError) else f"{type(error).__name__}: {error}"
        self._notify(lambda listener: listener.failed(self._stage, message))

    def _notify(self, event: Callable[[Listener], None]) -> None:
        for listener in list(self._listeners):
            try:
                event(listener)
            except Exception as error:
                # Hours of training must not end because a dashboard is unreachable.
                self._listeners.remove(listener)
                fault = hide_secrets(f"{type(error).__name__}: {error}")
                self.faults.append(f"`{listener.name}`: {fault}")
                self._progress.warn(
                    f"the listener `{listener.name}` failed and receives no more events of this stage: {fault}"
                )
