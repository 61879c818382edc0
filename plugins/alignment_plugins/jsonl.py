"""A listener that appends the progress and metrics of every stage to one file as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from alignment_core.plugin_api import Listener, StageInfo, hookimpl


class JsonLines(Listener):
    """Appends one JSON object per event to a file: started, step, finished, cached or failed."""

    model_config = ConfigDict(title="JSON lines")
    example: ClassVar[Mapping[str, Any]] = {"path": "metrics.jsonl"}

    name: Literal["jsonl"] = "jsonl"
    path: Path
    """File to append to. It is created with its folder if missing."""

    def started(self, stage: StageInfo) -> None:
        self._write(stage, "started")

    def step(self, stage: StageInfo, done: int, total: int, metrics: Mapping[str, float]) -> None:
        self._write(stage, "step", done=done, total=total, metrics=dict(metrics))

    def finished(self, stage: StageInfo, metrics: Mapping[str, Any], *, cached: bool) -> None:
        self._write(stage, "cached" if cached else "finished", metrics=dict(metrics))

    def failed(self, stage: StageInfo, error: str) -> None:
        self._write(stage, "failed", error=error)

    def _write(self, stage: StageInfo, event: str, **more: Any) -> None:
        place = {"run": stage.run, "stage": stage.stage, "label": stage.label, "key": stage.key}
        line = {"time": datetime.now(UTC).isoformat(), **place, "event": event, **more}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Opened for each line, because several runs may write to one file, and so that a crash loses nothing.
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


@hookimpl
def alignment_listeners() -> list[type[Listener]]:
    return [JsonLines]
