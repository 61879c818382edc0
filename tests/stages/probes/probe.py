"""A stage whose settings make it succeed, fail or crash, to test `build`. It runs in a real process."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Any

from alignment_core.errors import DataError
from alignment_core.execution.stage import Job, Stage
from alignment_core.progress import Stopped


def run(job: Job) -> dict[str, Any]:
    config = job.call.config
    with (job.checkpoints / "starts").open("a") as file:
        file.write(f"{os.getpid()}\n")
    starts = (job.checkpoints / "starts").read_text().split()
    job.progress.log("started")
    print("a line of the log", flush=True)
    match config["do"]:
        case "write":
            if len(starts) == 1:
                time.sleep(config.get("seconds", 0))
        case "die once":
            if len(starts) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        case "die by":
            _die(signal.Signals(config["signal"]))
        case "eat":
            Path(config["cgroup"], "cgroup.procs").write_text(str(os.getpid()))
            eaten = [bytearray(os.urandom(2**20)) for _ in range(config["megabytes"])]
            print(len(eaten))
        case "exit":
            print("about to leave", flush=True)
            os._exit(7)
        case "exit as bitsandbytes":
            print("Error out of memory at line 64 in file /src/csrc/pythonInterface.cpp", flush=True)
            os._exit(1)
        case "user error":
            raise DataError("no rows", where="data.jsonl", got=0, expected="at least 1", do="Add some")
        case "full disk":
            with open("/dev/full", "w", buffering=1) as file:
                file.write("a line\n")
        case "memory":
            bytearray(2**60)
        case "bug":
            raise KeyError("lost")
        case "wait":
            _wait(job)
        case "hang":
            job.progress.step(0, 1)
            time.sleep(60)
        case "report":
            for n in range(1, 2001):
                job.progress.step(n, 2000, {"loss": 1 / n})
            job.progress.warn("x" * 100_000)
    for role, folder in job.parents.items():
        (job.out / f"{role}.txt").write_text((folder / "result.txt").read_text())
    (job.out / "result.txt").write_text(config["do"])
    return {"starts": len(starts)}


def _die(by: signal.Signals) -> None:
    """Crash like native code: an invalid pointer, a failed assertion, or a kill by the system."""
    print("about to die", flush=True)
    if by is signal.SIGSEGV:
        ctypes.string_at(0)
    elif by is signal.SIGABRT:
        os.abort()
    os.kill(os.getpid(), by)


def _wait(job: Job) -> None:
    """Act like a training loop: wait for the request to stop, then write a checkpoint."""
    job.progress.step(0, 1)
    while not job.progress.stopping:
        time.sleep(0.01)
    Path(job.checkpoints / "saved").write_text("step 5")
    raise Stopped


STAGE = Stage("probe", 1, run)
