"""Forward the events of a stage to the flow's progress and to the listeners in the settings."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from alignment_core.addresses import hide_secrets
from alignment_core.errors import AlignmentError, PluginError
from alignment_core.execution.stage import StageCall
from alignment_core.plugin_api import StageInfo
from alignment_core.plugin_calls import calling, summary
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
        self._stage = StageInfo(call.runtime.run, call.stage, call.label, call.key, deepcopy(call.config), folder)
        self._progress = progress
        self.faults: list[str] = []

    @property
    def stopping(self) -> bool:
        return self._progress.stopping

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        self._progress.step(done, total, metrics)
        self._notify("step", done, total, metrics or {})

    def log(self, message: str) -> None:
        self._progress.log(hide_secrets(message))

    def warn(self, message: str) -> None:
        self._progress.warn(hide_secrets(message))

    def started(self) -> None:
        self._notify("started")

    def finished(self, metrics: Mapping[str, Any], *, cached: bool) -> None:
        self._notify("finished", metrics, cached=cached)

    def failed(self, error: BaseException) -> None:
        message = str(error) if isinstance(error, AlignmentError) else f"{type(error).__name__}: {error}"
        self._notify("failed", message)

    def _notify(self, method: str, *details: Any, **more: Any) -> None:
        for listener in list(self._listeners):
            try:
                with calling(listener, method, self._stage.label):
                    # A copy, because a listener must not change what the next one or the artifact gets.
                    getattr(listener, method)(self._stage, *deepcopy(details), **more)
            except Exception as error:
                # Hours of training must not end because a dashboard is unreachable.
                self._listeners.remove(listener)
                fault = error if isinstance(error, PluginError) else PluginError(summary(error), where=method)
                self.faults.append(f"{fault.where}: {fault.what}")
                self._progress.warn(f"a listener failed and receives no more events of this stage: {fault}")
