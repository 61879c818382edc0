"""Run a stage in one process per card, which torch's launcher (`torchrun`) starts, watches and ends together."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, launch_agent

from alignment_core.errors import AlignmentError, StageCrashed
from alignment_core.execution.finished import Finished
from alignment_core.execution.rank_process import RankTask, run_rank
from alignment_core.execution.stage import Job
from alignment_core.progress import Progress, Stopped
from alignment_core.ranks.cards import check_cards
from alignment_core.temporary import temporary_folder

LISTEN_SECONDS = 0.2
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""Ranks of one machine meet at its loopback address. The user's environment overrides it."""


def run_on_cards(job: Job) -> Finished:
    """Run the stage of a job in one process per card. Rank 0 fills the job's folder.

    This process only starts and ends them, and passes on what rank 0 reports. It uses no card.

    Raises:
        ConfigError: the machine has fewer cards.
        AlignmentError: the error that a rank raised. `StageCrashed` if one crashed or was killed.
        Stopped: the stage was asked to stop.
    """
    runtime = job.call.runtime
    check_cards(runtime.gpus, runtime.device)
    job.progress.log(f"this stage runs in {runtime.gpus} processes, one per {_unit(runtime.device)}")
    # Its tracebacks would hide those of the ranks, which are in the log already.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    pipes = [Pipe(duplex=False) for _ in range(runtime.gpus)]
    listener = _Listener([receiving for receiving, _ in pipes], job.progress)
    with temporary_folder("ranks") as scratch, _loopback(), _own_sigterm():
        sending = tuple(sent for _, sent in pipes)
        task = RankTask(job.call, job.parents, job.out, job.checkpoints, scratch, sending)
        listener.start()
        failed: ChildFailedError | None = None
        try:
            launch_agent(_launch(runtime.gpus), run_rank, [task])
        except SignalException as error:
            raise Stopped("asked to stop") from error
        except ChildFailedError as error:
            failed = error
        finally:
            for pipe in sending:
                pipe.close()
            listener.join()
    if failed is None:
        return _all_finished(listener.outcomes)
    raise _failure(job, listener.outcomes, failed) from failed


def _launch(cards: int) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=cards,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        # The flow retries the stage, with whatever settings it then has.
        max_restarts=0,
        signals_to_handle="SIGTERM",
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )


class _Listener(threading.Thread):
    """Passes on the progress of rank 0, and keeps how each rank ended."""

    def __init__(self, pipes: list[Connection], progress: Progress) -> None:
        super().__init__(daemon=True)
        self._open, self._progress = dict(zip(pipes, range(len(pipes)), strict=True)), progress
        self._ready = False
        self._told = False
        self.outcomes: dict[int, dict[str, Any]] = {}

    def run(self) -> None:
        while self._open:
            for pipe in wait(list(self._open), LISTEN_SECONDS):
                assert isinstance(pipe, Connection)
                try:
                    self._handle(self._open[pipe], pipe.recv())
                except (EOFError, OSError):
                    del self._open[pipe]
            if self._progress.stopping and self._ready and not self._told:
                # The signal came before the launcher listened to it, or the flow's process has ended.
                self._told = True
                os.kill(os.getpid(), signal.SIGTERM)

    def _handle(self, rank: int, event: dict[str, Any]) -> None:
        match event.pop("event"):
            case "ready":
                self._ready = True
            case "step":
                self._progress.step(**event)
            case "log":
                self._progress.log(event["message"])
            case "warn":
                self._progress.warn(event["message"])
            case last:
                self.outcomes[rank] = {"event": last, **event}


def _all_finished(outcomes: dict[int, dict[str, Any]]) -> Finished:
    """Return what rank 0 gave, with the memory of the rank that took most."""
    ranks = [Finished(**outcome["finished"]) for _, outcome in sorted(outcomes.items())]
    largest = max(ranks, key=lambda rank: rank.peak_device_memory or 0)
    return Finished(
        ranks[0].version,
        ranks[0].metrics,
        max(rank.peak_memory for rank in ranks),
        largest.peak_device_memory,
        largest.outside_device_memory,
    )


def _failure(job: Job, outcomes: dict[int, dict[str, Any]], failed: ChildFailedError) -> BaseException:
    """Return why the stage ended: what a rank says itself, or else how its process ended."""
    for rank, outcome in sorted(outcomes.items()):
        if outcome["event"] == "error":
            return AlignmentError.from_json(outcome["error"])
        if outcome["event"] == "failed":
            message = f"rank {rank}: {outcome['message']}"
            if outcome["disk"] is not None:
                number, place = outcome["disk"]
                return OSError(number, message, place)
            return (MemoryError if outcome["ran_out_of_memory"] else RuntimeError)(message)
    rank, process = failed.get_first_failure()
    if rank in outcomes and any(outcome["event"] == "stopped" for outcome in outcomes.values()):
        return Stopped("a rank was asked to stop")
    killed = process.exitcode < 0
    how = f"was killed by {signal.Signals(-process.exitcode).name}" if killed else f"exited with {process.exitcode}"
    crash = StageCrashed(f"rank {rank} of {job.call.cards} {how}, which ends the others", where=job.call.label)
    crash.killed = killed
    return crash


@contextmanager
def _loopback() -> Iterator[None]:
    """Let the ranks, which inherit the environment, meet at the loopback address."""
    added = {name: value for name, value in LOOPBACK.items() if sys.platform == "linux" and name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Restore this process's handler of SIGTERM, which the launcher replaces."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _unit(device: str) -> str:
    return "share of the CPU" if device == "cpu" else "card"
