"""End a server and workers with the flow runs below them."""

import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress

import psutil

STOP_SECONDS = 40.0
"""A flow run has 20 s to write a checkpoint, and Prefect's worker has 30 s to stop its flow runs."""


def end_processes(processes: Sequence[psutil.Process], how: signal.Signals) -> None:
    """Send a signal, wait for checkpoints, then send SIGKILL, also to flow runs that outlive their worker."""
    below = [child for process in processes for child in process.children(recursive=True)]
    # Stop the flow runs first, so that they report their end. A run that dies with its worker does not: it is shown as
    # running, and takes up a slot of its work pool, until the automation marks it as crashed.
    runs = [child for process in processes for child in process.children() if _is_flow_run(child)]
    _terminate(runs)
    psutil.wait_procs(runs, timeout=STOP_SECONDS)
    _terminate(processes, how)
    psutil.wait_procs(processes, timeout=STOP_SECONDS)
    left = [process for process in (*processes, *below) if process.is_running()]
    _terminate(left)
    _, stubborn = psutil.wait_procs(left, timeout=STOP_SECONDS)
    for process in stubborn:
        process.kill()
    psutil.wait_procs(stubborn)


def _is_flow_run(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return "prefect.engine" in process.cmdline()
    return False


def _terminate(processes: Iterable[psutil.Process], how: signal.Signals = signal.SIGTERM) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(how)
