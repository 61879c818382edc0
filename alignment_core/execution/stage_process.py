"""The process of a stage: reads one call from stdin, builds it, and reports to the pipe named by its argument.

The process stops on SIGTERM, and when its parent has ended (stdin closes). It always stops within `STOP_SECONDS`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import faulthandler
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from types import FrameType
from typing import Any

from alignment_core.errors import AlignmentError, StageCrashed, ran_out_of_memory
from alignment_core.execution.build import build_here
from alignment_core.execution.launcher import STOP_SECONDS
from alignment_core.execution.stage import StageCall
from alignment_core.progress import Stopped

PR_SET_PDEATHSIG = 1


class PipeProgress:
    """Progress that is sent to the flow's process, one JSON object per line."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self.stopping = False

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        self.send("step", done=done, total=total, metrics=None if metrics is None else dict(metrics))

    def log(self, message: str) -> None:
        self.send("log", message=message)

    def warn(self, message: str) -> None:
        self.send("warn", message=message)

    def send(self, event: str, **fields: Any) -> None:
        line = json.dumps({"event": event, **fields}).encode() + b"\n"
        try:
            while line:  # a signal may interrupt a write
                line = line[os.write(self._pipe, line) :]
        except BrokenPipeError:
            # The flow's process has ended. Stop, but write a checkpoint first.
            self.stopping = True

    def stop(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler: set `stopping` for the stage. If it does not stop in time, a timer ends the process.

        The timer does not need the GIL.
        """
        self.stopping = True
        faulthandler.dump_traceback_later(STOP_SECONDS, exit=True)


def main() -> None:
    faulthandler.enable(all_threads=False)  # stacks of other threads would fill the last lines of the log
    call = StageCall.model_validate_json(sys.stdin.buffer.readline())
    pipe = int(sys.argv[1])
    os.set_inheritable(pipe, False)
    progress = PipeProgress(pipe)
    # Ctrl-C reaches the whole foreground process group. The parent turns it into SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, progress.stop)
    _follow_parent()
    _build(call, progress)


def _build(call: StageCall, progress: PipeProgress) -> None:
    try:
        artifact, cached = build_here(call, progress)
    except Stopped:
        progress.send("stopped")
    except StageCrashed as error:
        progress.send("crashed", what=error.what, killed=error.killed)
    except AlignmentError as error:
        progress.send("error", error=error.to_json())
    except Exception as error:
        traceback.print_exc()
        memory = ran_out_of_memory(error)
        progress.send("failed", message=f"{type(error).__name__}: {error}", ran_out_of_memory=memory)
    else:
        progress.send("done", artifact=dataclasses.asdict(artifact), cached=cached)


def _follow_parent() -> None:
    """Stop when the parent has ended, for whatever reason."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # Forked children of the stage must not read this stdin or wait for it.
    stdin = os.dup(0)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    threading.Thread(target=_await_end, args=(stdin,), daemon=True).start()


def _await_end(stdin: int) -> None:
    os.read(stdin, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
