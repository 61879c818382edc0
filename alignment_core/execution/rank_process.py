"""One rank of a stage: its process, which torch's launcher starts, and what it sends to the stage's process."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch

from alignment_core.errors import AlignmentError, ran_out_of_memory
from alignment_core.execution.finished import finish_here
from alignment_core.execution.launcher import STOP_SECONDS
from alignment_core.execution.stage import Job, StageCall
from alignment_core.progress import Stopped
from alignment_core.ranks.group import Group, RankLost

PR_SET_PDEATHSIG = 1
LOST_SECONDS = 10
"""Longest time until the launcher ends the others when one rank has ended."""


@dataclass(frozen=True)
class RankTask:
    """What the ranks of a stage shall do. It is pickled for each of them.

    Attributes:
        call: the stage call.
        parents: as in `Job`.
        out, checkpoints: as in `Job`, for rank 0.
        scratch: an empty folder, in which the other ranks write what nobody reads.
        pipes: where each rank sends its events.
    """

    call: StageCall
    parents: Mapping[str, Path]
    out: Path
    checkpoints: Path
    scratch: Path
    pipes: tuple[Connection, ...]

    def job(self, group: Group, progress: RankProgress) -> Job:
        """Return the job of a rank. On GPUs, the rank's number is that of its card."""
        call = self.call
        if call.runtime.device != "cpu":
            runtime = call.runtime.model_copy(update={"device": f"cuda:{group.index}"})
            call = call.model_copy(update={"runtime": runtime})
        out, checkpoints = self.out, self.checkpoints
        if group.index > 0:
            out, checkpoints = (self.scratch / f"{group.index}" / name for name in ("out", "checkpoints"))
            out.mkdir(parents=True)
            checkpoints.mkdir()
        return Job(call, self.parents, out, checkpoints, progress, group)


class RankProgress:
    """Progress of a rank. That of rank 0 is sent to the stage's process."""

    def __init__(self, group: Group, pipe: Connection) -> None:
        self._group, self._pipe = group, pipe

    @property
    def stopping(self) -> bool:
        return self._group.stopping

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        self._send("step", done=done, total=total, metrics=None if metrics is None else dict(metrics))

    def log(self, message: str) -> None:
        self._send("log", message=message)

    def warn(self, message: str) -> None:
        self._send("warn", message=message)

    def _send(self, event: str, **fields: Any) -> None:
        if self._group.index == 0:
            try:
                self._pipe.send({"event": event, **fields})
            except BrokenPipeError:
                # The stage's process has ended. Stop, but write a checkpoint first.
                self._group.asked = True


def run_rank(task: RankTask) -> None:
    """Run the stage as the rank that the environment names. The launcher ends the others if this one fails."""
    index, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    pipe = task.pipes[index]
    faulthandler.enable(all_threads=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    torch.set_num_threads(max(1, torch.get_num_threads() // size))
    group = Group.join(index, size, on_cards=task.call.runtime.device != "cpu")

    def stop(signum: int, frame: FrameType | None) -> None:
        group.asked = True
        faulthandler.dump_traceback_later(STOP_SECONDS, exit=True)

    signal.signal(signal.SIGTERM, stop)
    pipe.send({"event": "ready"})
    try:
        finished = finish_here(task.job(group, RankProgress(group, pipe)))
        # All have finished, or none has.
        group.gather("end", None)
    except RankLost as error:
        # The launcher reports the process that it sees end first. That must be the one that was lost.
        _wait_for_stop(group)
        _end(pipe, "lost", message=str(error))
    except Stopped as error:
        _end(pipe, "stopped", message=str(error))
    except AlignmentError as error:
        _end(pipe, "error", error=error.to_json())
    except Exception as error:
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
        disk = (error.errno, str(error.filename)) if isinstance(error, OSError) and error.errno else None
        _end(pipe, "failed", message=message, ran_out_of_memory=ran_out_of_memory(error), disk=disk)
    pipe.send({"event": "done", "finished": asdict(finished)})
    group.leave()


def _wait_for_stop(group: Group) -> None:
    deadline = time.monotonic() + LOST_SECONDS
    while not group.asked and time.monotonic() < deadline:
        time.sleep(0.05)


def _end(pipe: Connection, event: str, **fields: Any) -> NoReturn:
    """Send the last event of a rank that did not finish, and leave at once, whatever waits for the other ranks."""
    pipe.send({"event": event, **fields})
    sys.stderr.flush()
    os._exit(1)
