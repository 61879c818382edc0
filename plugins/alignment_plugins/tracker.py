"""A listener: settings and metrics of training stages to TensorBoard, W&B, MLflow and others that accelerate knows.

The tracker lives in a process of its own (`tracker_process`): this one loads no torch, and a server that is away or
slow keeps no training waiting.
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
from typing import IO, Any, Literal

from pydantic import ConfigDict, Field, PrivateAttr, field_validator

from alignment_core.plugin_api import Listener, StageInfo, hookimpl

Service = Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]
HISTORY = "metrics.jsonl"
"""What a stage that trains leaves in its artifact: every metric of every step."""
COMMAND = [sys.executable, "-P", "-m", "alignment_plugins.tracker_process"]
LAST_LOG_BYTES = 2000


class Tracker(Listener):
    """Sends every metric of every training step once, whatever stops and goes on; names are those of the history."""

    model_config = ConfigDict(title="Tracker")

    name: Literal["tracker"] = "tracker"
    to: Service
    """Which tracker, by accelerate's name; its package must be installed."""
    folder: Path = Path("tracking")
    """Folder of local files: TensorBoard's, Aim's, MLflow's where MLFLOW_TRACKING_URI is unset, and what was sent."""
    project: str = "alignment"
    """Project or experiment that the runs belong to."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further settings of the tracker, as accelerate's `init_kwargs` takes them."""
    patience: float = Field(60, ge=0)
    """Seconds that a finished stage waits for what was not sent yet."""

    _sender: _Sender | None = PrivateAttr(None)

    @field_validator("to")
    @classmethod
    def _is_installed(cls, to: Service) -> Service:
        if find_spec(to) is None:
            raise ValueError(f"`{to}` is not installed here: pip install {to.replace('_', '-')}")
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
        # A cancelled run has seconds; the process sends by itself what it was given.
        if self._sender is not None:
            self._sender.leave()
            self._sender = None

    def sent_file(self, stage: StageInfo) -> Sent:
        """What was sent of this stage."""
        return Sent(self.folder.absolute() / "sent" / self.to / f"{stage.key}.json")

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
                "settings": dict(flat(stage.settings)),
                "sent": str(self.sent_file(stage).path),
            }
            self._sender = _Sender(opening)
        self._sender.send(event)


class Sent:
    """Which metrics of a stage were sent, up to which step: in a file, for whoever goes on.

    Attributes:
        path: the file.
        value: `steps`, the last step of each metric; `run`, the tracker's own id; `complete`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.value: dict[str, Any] = {"steps": {}, "run": None, "complete": False}
        if path.is_file():
            self.value = json.loads(path.read_text(encoding="utf-8"))

    def is_complete(self) -> bool:
        """Whether everything was sent."""
        return bool(self.value["complete"])

    def save(self) -> None:
        """Write it in one step, so that a kill leaves the old one or the new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps(self.value), encoding="utf-8")
        beside.replace(self.path)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings by dotted names, as hyperparameters; long texts such as templates are left out."""
    found: dict[str, bool | int | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float):
            found[f"{prefix}{name}"] = value
        elif value is not None and len(text := value if isinstance(value, str) else json.dumps(value)) <= 200:
            found[f"{prefix}{name}"] = text
    return found


class _Sender:
    """The tracker's process, fed by a thread: whoever sends never waits."""

    def __init__(self, opening: Mapping[str, Any]) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            # Ctrl-C is for the training; this process ends when it has sent what it was given.
            start_new_session=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
        self._left = False
        self._events: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self._thread = Thread(target=self._feed, daemon=True)
        self._thread.start()
        self.send(opening)

    def send(self, event: Mapping[str, Any]) -> None:
        """Raises: RuntimeError if the process is gone."""
        if self._process.poll() not in (None, 0):
            raise RuntimeError(self._words())
        self._events.put(event)

    def leave(self) -> None:
        """Wait for nothing: the process ends when it has sent what it was given."""
        self._left = True
        self._events.put(None)

    def end(self, patience: float) -> None:
        """Wait until all is sent.

        Raises:
            RuntimeError: it was not, in this time; the rest is sent by the next run that meets the stage.
        """
        self._events.put(None)
        self._thread.join(patience)
        in_time = not self._thread.is_alive()
        if not in_time:
            self._process.kill()
            self._thread.join()
        with self._log:
            if not in_time:
                raise RuntimeError(f"what it has to send was not taken within {patience:g} s")
            if self._process.returncode != 0:
                raise RuntimeError(self._words())

    def _feed(self) -> None:
        assert self._process.stdin is not None
        try:
            with self._process.stdin as pipe:
                for event in iter(self._events.get, None):
                    pipe.write(json.dumps(event).encode() + b"\n")
                    pipe.flush()
        except BrokenPipeError:
            pass  # it died; whoever sends next is told
        self._process.wait()
        if self._left:
            self._log.close()

    def _words(self) -> str:
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - LAST_LOG_BYTES))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"its process ended with exit code {self._process.returncode}"


@hookimpl
def alignment_listeners() -> list[type[Listener]]:
    return [Tracker]
