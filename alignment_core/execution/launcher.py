"""The flow's side of a stage's process: start it, read its events, stop it, and report how it ended."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from alignment_core.artifacts import Artifact
from alignment_core.errors import MEMORY_ENDED, AlignmentError, StageCrashed
from alignment_core.execution.stage import StageCall
from alignment_core.processes.start import Child, start_module
from alignment_core.progress import Progress

STOP_SECONDS = 20
"""Seconds that a stage has after SIGTERM to finish its checkpoint."""
POLL_SECONDS = 0.5
LOG_LINES = 25
LOG_BYTES = 8192
WITHOUT_MODEL = ("ingest", "gate")
"""Stages that load no model."""


def build_in_process(call: StageCall, progress: Progress) -> tuple[Artifact, bool]:
    """Build `call` in a new process.

    Returns:
        The artifact, and whether another run had built it first.

    Raises:
        AlignmentError: the error that the process raised, or `StageCrashed` if it crashed.
    """
    out_of_memory_kills = _out_of_memory_kills()
    # A file instead of a pipe: it keeps the last output of the process and cannot block or break the process.
    with tempfile.TemporaryFile() as log, _child(call, log) as (child, events):
        outcome = _listen(child, events, progress)
        returncode = child.wait()
        if outcome.get("event") == "done":
            return Artifact(**outcome["artifact"]), outcome["cached"]
        if outcome.get("event") == "error":
            raise AlignmentError.from_json(outcome["error"])
        killed = returncode == -signal.SIGKILL or outcome.get("killed", False)
        memory_ran_out = killed and _out_of_memory_kills() > out_of_memory_kills
        raise _crash(call, outcome, returncode, memory_ran_out, _last_lines(log))


@contextmanager
def _child(call: StageCall, log: IO[bytes]) -> Iterator[tuple[Child, IO[bytes]]]:
    """Start the stage's process. It reads its call from stdin and writes its events to a separate pipe."""
    reading, events_in = os.pipe()
    stdin, requests = os.pipe()
    # The stdin stays open. When it closes, the process knows that this process has ended.
    with open(reading, "rb", buffering=0) as events, open(requests, "wb", buffering=0) as request:
        try:
            output = log.fileno()
            module = "alignment_core.execution.stage_process"
            light = call.stage in WITHOUT_MODEL
            child = start_module(module, stdin=stdin, stdout=output, stderr=output, passed=(events_in,), light=light)
        finally:
            os.close(events_in)
            os.close(stdin)
        try:
            _send(request, call)
            yield child, events
        except BaseException:
            events.close()
            _stop(child)
            raise


def _send(request: IO[bytes], call: StageCall) -> None:
    line = call.model_dump_json().encode() + b"\n"
    with suppress(BrokenPipeError):  # the process ended during startup; its exit code and log show why
        while line:
            line = line[request.write(line) :]


def _stop(child: Child) -> None:
    """Ask the process to stop. Kill it if it does not stop, or if this process is interrupted again."""
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


def _listen(child: Child, events: IO[bytes], progress: Progress) -> dict[str, Any]:
    """Forward the progress of the process. Return its final event, or an empty dict if it ended without one."""
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


def _read_events(child: Child, events: IO[bytes]) -> Iterator[dict[str, Any]]:
    """Yield events until the pipe closes or the process ends. A forked child of the process may hold the pipe open."""
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
    again = "Run again. The stage resumes from its last checkpoint"
    less = "Lower `token_budget` or `model.max_length`, or choose a smaller model"
    message = outcome.get("message", "")
    if outcome.get("ran_out_of_memory"):
        what, do = f"out of memory: {message}", less
    elif outcome.get("event") == "failed":
        what, do = f"the stage failed: {message}", "This is a bug in Alignment Flows or in a plugin. Please report it"
    elif outcome.get("event") == "stopped":
        what, do = "the stage's process was asked to stop", again
    elif memory_ran_out:
        what, do = "out of memory: the system killed the stage's process", less
    elif (returncode > 0 or outcome.get("event") == "crashed") and (ended := MEMORY_ENDED.search(last_lines)):
        what, do = f"out of memory: the stage's process exited with code {returncode} after {ended[0]!r}", less
    elif outcome.get("event") == "crashed":
        what, do = outcome["what"], again
    elif returncode < 0:
        what, do = f"the stage's process was killed by {signal.Signals(-returncode).name}", again
    else:
        what, do = f"the stage's process exited with code {returncode}", again
    log = f". The last lines of its log:\n{last_lines}" if last_lines else ""
    crash = StageCrashed(what, where=call.label, do=do + log)
    crash.killed = outcome.get("killed", returncode < 0 and not outcome)
    return crash


def _last_lines(log: IO[bytes]) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_BYTES))
    lines = log.read().decode(errors="replace").replace("\r", "\n").splitlines()
    return "\n".join(f"  {line}" for line in [line for line in lines if line.strip()][-LOG_LINES:])


def _out_of_memory_kills() -> int:
    """Return how many processes the system has killed because it was out of memory, or 0 if it does not report this."""
    try:
        counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    except OSError:
        return 0
    return int(counters.get("oom_kill", 0))
