"""The flow's side of a stage's process: start it, listen to it, stop it, and say in words how it died."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from alignment_core.artifacts import Artifact
from alignment_core.errors import AlignmentError, StageCrashed
from alignment_core.progress import Progress
from alignment_core.stages.base import StageCall

STOP_SECONDS = 20
"""Time that a stage has from SIGTERM to the end of its checkpoint."""
POLL_SECONDS = 0.5
LOG_LINES = 25
ENVIRONMENT = {
    # glibc joins every free block with its neighbours at once. The slivers that aligned tensors leave between them
    # would otherwise be kept for small objects, and a hole then not hold the next tensor of the size that left it.
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
    # oneDNN keeps a program and its memory for each shape of a bf16 product, 1024 of them; micro-batches have as many.
    # With half as many as here a PPO update takes a third longer, for it writes most of them anew.
    "LRU_CACHE_CAPACITY": "64",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    # Threads that wait for each other spin 300,000 times first, which keeps them from running where something else has
    # a core as well: a tiny model that trains in 20 s on two free cores needs 17 minutes beside one busy process.
    # With this it takes 22 s in both cases.
    "GOMP_SPINCOUNT": "2000",
}
"""Environment of a stage's process, unless the user's own says otherwise."""
LOG_BYTES = 8192


def run_in_process(call: StageCall, progress: Progress) -> tuple[Artifact, bool]:
    """Build `call` in a new process, and tell whether another run had built it first.

    Raises:
        AlignmentError: as raised in the process; `StageCrashed` if it died.
    """
    out_of_memory_kills = _out_of_memory_kills()
    # A file rather than a pipe: it holds what the process wrote last, and cannot block or break under it.
    with tempfile.TemporaryFile() as log, _child(call, log) as (child, events):
        outcome = _listen(child, events, progress)
        returncode = child.wait()
        if outcome.get("event") == "done":
            return Artifact(**outcome["artifact"]), outcome["cached"]
        if outcome.get("event") == "error":
            raise AlignmentError.from_json(outcome["error"])
        memory_ran_out = returncode == -signal.SIGKILL and _out_of_memory_kills() > out_of_memory_kills
        raise _crash(call, outcome, returncode, memory_ran_out, _last_lines(log))


@contextmanager
def _child(call: StageCall, log: IO[bytes]) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """The stage's process, reading its call from stdin and writing its events to a pipe of their own."""
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as events:
        try:
            # -P: a folder of the user's that is called `datasets` must not stand in for the package.
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "alignment_core.stages.child", str(writing)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(writing,),
                env=ENVIRONMENT | dict(os.environ),
            )
        finally:
            os.close(writing)
        assert child.stdin is not None
        # stdin stays open: its end tells the process that we are gone.
        with child.stdin:
            try:
                _send(child.stdin, call)
                yield child, events
            except BaseException:
                events.close()
                _stop(child)
                raise


def _send(stdin: IO[bytes], call: StageCall) -> None:
    try:
        stdin.write(call.model_dump_json().encode() + b"\n")
        stdin.flush()
    except BrokenPipeError:
        pass  # it died at birth; its exit code and log say why


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Ask the process to stop, and kill it if it does not, or if we are interrupted once more."""
    child.terminate()
    try:
        child.wait(STOP_SECONDS + 2)
    except subprocess.TimeoutExpired:
        child.kill()
    except BaseException:
        child.kill()
        raise
    finally:
        child.wait()


def _listen(child: subprocess.Popen[bytes], events: IO[bytes], progress: Progress) -> dict[str, Any]:
    """Pass the process's progress on; returns its last word, or nothing if it died without one."""
    for event in _read_events(child, events):
        match event.pop("event"):
            case "step":
                progress.step(**event)
            case "log":
                progress.log(event["message"])
            case "warn":
                progress.warn(event["message"])
            case last:
                return {"event": last, **event}
    return {}


def _read_events(child: subprocess.Popen[bytes], events: IO[bytes]) -> Iterator[dict[str, Any]]:
    """Events until the pipe ends, or the process does: something that it forked may hold the pipe open."""
    buffer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(events, selectors.EVENT_READ)
        while True:
            ended = child.poll() is not None
            if selector.select(0 if ended else POLL_SECONDS):
                chunk = os.read(events.fileno(), 65536)
                if not chunk:
                    return
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    yield json.loads(line)
            elif ended:
                return


def _crash(
    call: StageCall, outcome: dict[str, Any], returncode: int, memory_ran_out: bool, last_lines: str
) -> StageCrashed:
    again = "Run again: it goes on from the last checkpoint"
    less = "Lower `token_budget` or `model.max_length`, or choose a smaller model"
    message = outcome.get("message", "")
    if outcome.get("ran_out_of_memory"):
        what, do = f"memory ran out: {message}", less
    elif outcome.get("event") == "failed":
        what, do = f"the stage failed: {message}", "This is a mistake of ours or of a plugin"
    elif outcome.get("event") == "stopped":
        what, do = "the stage's process was asked to stop", again
    elif memory_ran_out:
        what, do = "the system killed the stage's process because memory ran out", less
    elif returncode < 0:
        what, do = f"the stage's process was killed by {signal.Signals(-returncode).name}", again
    else:
        what, do = f"the stage's process ended with exit code {returncode}", again
    log = f". The last lines of its log:\n{last_lines}" if last_lines else ""
    crash = StageCrashed(what, where=call.label, do=do + log)
    crash.killed = returncode < 0 and not outcome
    return crash


def _last_lines(log: IO[bytes]) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_BYTES))
    lines = log.read().decode(errors="replace").replace("\r", "\n").splitlines()
    return "\n".join(f"  {line}" for line in [line for line in lines if line.strip()][-LOG_LINES:])


def _out_of_memory_kills() -> int:
    """How often this system has killed a process for want of memory; 0 where it does not say."""
    try:
        counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    except OSError:
        return 0
    return int(counters.get("oom_kill", 0))
