"""A listener that sends settings and metrics of training stages to TensorBoard, W&B, MLflow and others via accelerate.

The tracker runs in a separate process (`tracker_process`), so that this process does not load torch, and a slow or
unreachable server does not delay training.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import IO, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, PrivateAttr, field_validator

from alignment_core.plugin_api import Listener, StageInfo, hookimpl

Service = Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]
HISTORY = "metrics.jsonl"
"""File in the artifact of a training stage with every metric of every step."""
COMMAND = [sys.executable, "-P", "-m", "alignment_plugins.tracker_process"]
LAST_LOG_BYTES = 2000


class Tracker(Listener):
    """Sends the metrics of every training step to an experiment tracker once, even if a run stops and resumes.

    Metric names are those of `metrics.jsonl`.
    """

    model_config = ConfigDict(title="Tracker")
    example: ClassVar[Mapping[str, Any]] = {"to": "tensorboard"}

    name: Literal["tracker"] = "tracker"
    to: Service
    """Name of the tracker in accelerate. Its package must be installed."""
    folder: Path = Path("tracking")
    """Folder for local trackers (TensorBoard, Aim, MLflow without MLFLOW_TRACKING_URI) and the sending progress."""
    project: str = "alignment"
    """Project or experiment of the runs."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further settings of the tracker, passed as `init_kwargs` of accelerate."""
    patience: float = Field(60, ge=0)
    """Seconds that a finished stage waits until all metrics are sent."""

    _sender: _Sender | None = PrivateAttr(None)

    @field_validator("to")
    @classmethod
    def _is_installed(cls, to: Service) -> Service:
        if find_spec(to) is None:
            raise ValueError(f"`{to}` is not installed. Install it: pip install {to.replace('_', '-')}")
        return to

    def step(self, stage: StageInfo, done: int, total: int, metrics: Mapping[str, float]) -> None:
        if metrics:
            self._send(stage, {"event": "step", "step": done, "metrics": dict(metrics)})

    def finished(self, stage: StageInfo, metrics: Mapping[str, Any], *, cached: bool) -> None:
        history = stage.folder / HISTORY
        if history.is_file() and (self._sender is not None or not self.sent_file(stage).is_complete()):
            self._send(stage, {"event": "history", "file": str(history)})
        if self._sender is not None:
            sender, self._sender = self._sender, None
            sender.end(self.patience)

    def failed(self, stage: StageInfo, error: str) -> None:
        # A cancelled run has only seconds left. The process sends the queued events by itself.
        if self._sender is not None:
            self._sender.leave()
            self._sender = None

    def sent_file(self, stage: StageInfo) -> SentLog:
        """Return the record of the metrics of this stage that were sent."""
        return SentLog(self.folder.absolute() / "sent" / self.to / f"{stage.key}.json")

    def _send(self, stage: StageInfo, event: Mapping[str, Any]) -> None:
        if self._sender is None:
            opening = {
                "to": self.to,
                "folder": str(self.folder.absolute()),
                "project": self.project,
                "options": self.options,
                "run": stage.run,
                "stage": stage.stage,
                "key": stage.key,
                "settings": dict(flatten(stage.settings)),
                "sent": str(self.sent_file(stage).path),
            }
            self._sender = _Sender(opening)
        self._sender.send(event)


class SentLog:
    """Records in a file up to which step each metric of a stage was sent, so that a resumed run sends only the rest.

    Attributes:
        path: the file.
        value: `steps`, the last sent step of each metric; `run`, the tracker's id of the run; `complete`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.value: dict[str, Any] = {"steps": {}, "run": None, "complete": False}
        if path.is_file():
            self.value = json.loads(path.read_text(encoding="utf-8"))

    def is_complete(self) -> bool:
        """Return whether everything was sent."""
        return bool(self.value["complete"])

    def save(self) -> None:
        """Write the file atomically."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.value), encoding="utf-8")
        new.replace(self.path)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Flatten nested settings to dotted names for use as hyperparameters. Long texts such as templates are left out."""
    found: dict[str, bool | int | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float):
            found[f"{prefix}{name}"] = value
        elif value is not None and len(text := value if isinstance(value, str) else json.dumps(value)) <= 200:
            found[f"{prefix}{name}"] = text
    return found


class _Sender:
    """The tracker's process, fed by a thread so that `send` never blocks."""

    def __init__(self, opening: Mapping[str, Any]) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process runs)
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            # Ctrl-C must stop only the training. This process exits when it has sent all queued events.
            start_new_session=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
        self._left = False
        self._events: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self._thread = Thread(target=self._feed, daemon=True)
        self._thread.start()
        self.send(opening)

    def send(self, event: Mapping[str, Any]) -> None:
        """Queue an event.

        Raises:
            RuntimeError: the process has failed.
        """
        if self._process.poll() not in (None, 0):
            raise RuntimeError(self._error_message())
        self._events.put(event)

    def leave(self) -> None:
        """Return immediately. The process exits when it has sent all queued events."""
        self._left = True
        self._events.put(None)

    def end(self, patience: float) -> None:
        """Wait until all events are sent.

        Raises:
            RuntimeError: the time was too short, or the process failed. The next run with this stage sends the rest.
        """
        self._events.put(None)
        self._thread.join(patience)
        in_time = not self._thread.is_alive()
        if not in_time:
            self._process.kill()
            self._thread.join()
        with self._log:
            if not in_time:
                raise RuntimeError(f"not all metrics were sent within {patience:g} s")
            if self._process.returncode != 0:
                raise RuntimeError(self._error_message())

    def _feed(self) -> None:
        assert self._process.stdin is not None
        try:
            with self._process.stdin as pipe:
                for event in iter(self._events.get, None):
                    pipe.write(json.dumps(event).encode() + b"\n")
                    pipe.flush()
        except BrokenPipeError:
            pass  # the process has failed, and the next `send` or `end` raises its error
        self._process.wait()
        if self._left:
            self._log.close()

    def _error_message(self) -> str:
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - LAST_LOG_BYTES))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"its process ended with exit code {self._process.returncode}"


@hookimpl
def alignment_listeners() -> list[type[Listener]]:
    return [Tracker]
