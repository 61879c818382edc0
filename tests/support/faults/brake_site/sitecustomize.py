"""Loaded by the processes of a run that have this folder on their path: a stage waits if a test holds it, and the flow
run's own process reports at its end whether torch is loaded and its peak memory. See `brake.py`.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["ALIGN_TEST_BRAKE"])
TRAINING = {"sft", "reward", "optimize"}
POLLS = 3


class Braked:
    """Progress of a stage that waits in the middle: after its first step, or at its third check for a stop."""

    def __init__(self, progress: Any, name: str, training: bool) -> None:
        self._progress, self._name = progress, name
        self._polls, self._stepped, self._training = 0, False, training

    def step(self, done: int, total: int, metrics: Any = None) -> None:
        self._stepped = True
        self._progress.step(done, total, metrics)

    @property
    def stopping(self) -> bool:
        self._polls += 1
        if self._wanted():
            new = FOLDER / "held.new"
            new.write_text(str(os.getpid()))
            new.replace(FOLDER / "held")
        while self._wanted() and not self._progress.stopping:
            time.sleep(0.02)
        return bool(self._progress.stopping)

    def _wanted(self) -> bool:
        chosen = FOLDER / "hold"
        middle = self._stepped if self._training else self._polls >= POLLS
        return middle and chosen.exists() and chosen.read_text() == self._name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._progress, name)


def brake_stages() -> None:
    from alignment_core.execution import finished

    load_stage = finished.load_stage

    def load_braked(name: str) -> Any:
        stage = load_stage(name)

        def run(job: Any) -> Any:
            progress = Braked(job.progress, job.call.label.partition(" · ")[0], name in TRAINING)
            return stage.run(dataclasses.replace(job, progress=progress))

        return dataclasses.replace(stage, run=run)

    finished.load_stage = load_braked


def report_at_exit() -> None:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    report = {"torch": "torch" in sys.modules, "peak": int(status["VmHWM"].split()[0]) * 1024}
    (FOLDER / f"{os.environ['PREFECT__FLOW_RUN_ID']}.json").write_text(json.dumps(report))


if {"alignment_core.execution.stage_process", "alignment_core.processes.fork_server"} & {*sys.orig_argv}:
    brake_stages()
elif "prefect.engine" in sys.orig_argv:
    atexit.register(report_at_exit)
