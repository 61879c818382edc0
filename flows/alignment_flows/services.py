"""`align up` and `align down`: a Prefect server and one worker per work pool on this machine, in the background.

What was started is remembered (service_record.py), so that `down` ends that and nothing else.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil

from alignment_core.errors import AlignmentError, ConfigError
from alignment_flows.feedback_events import COUNTS_KEPT
from alignment_flows.service_record import Service, Services, alone, forget, record, remember, remembered

HOST = "127.0.0.1"
STARTUP_SECONDS = 180.0
STOP_SECONDS = 40.0
"""A flow run has 20 s for its checkpoint, and Prefect's worker 30 s for its flow runs."""
POLL_SECONDS = 0.2
LOG_LINES = 10


def running_server() -> str | None:
    """API of the server that `align up` started, if it is still there."""
    known = remembered()
    return known.url if known and any(service.name == "server" for service in known.running()) else None


def up(port: int, pools: Iterable[str], register: Callable[[], object]) -> Services:
    """Start what is missing of server and workers, and wait until they answer; two calls at once take turns.

    Args:
        port: of the server on this machine, where PREFECT_API_URL names no other.
        pools: the work pools that get a worker.
        register: makes the pools and the deployments, once the server answers.

    Raises:
        ConfigError: the port is taken, or the server that PREFECT_API_URL names does not answer.
        AlignmentError: a process ended again.
    """
    with alone():
        return _up(port, pools, register)


def _up(port: int, pools: Iterable[str], register: Callable[[], object]) -> Services:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    known = remembered()
    named = PREFECT_API_URL.value()
    url = named or (known.url if known and known.running() else f"http://{HOST}:{port}/api")
    if known and known.running() and known.url != url:
        raise ConfigError("`align up` runs with another server already", got=known.url, expected=url, do="`align down`")
    services = {service.name: service for service in (known.running() if known else ())}

    def state() -> Services:
        return Services(url, tuple(sorted(services.values(), key=lambda service: service.name != "server")))

    def start(name: str, command: Sequence[str]) -> None:
        # Whatever ends this command, and when: `align down` finds what it started.
        with _held_back(name, command, url) as services[name]:
            remember(state())

    if "server" not in services and not (named and _answers(url)):
        start("server", _server_command(url, named))
    _await_server(url, services.get("server"))
    with temporary_settings({PREFECT_API_URL: url}):
        os.environ["PREFECT_API_URL"] = url
        register()
    for pool in pools:
        if pool not in services:
            start(pool, _worker_command(pool))
    _await_workers(state(), pools)
    return state()


def down() -> tuple[Service, ...]:
    """End what `align up` started, the workers before the server, which learns how their runs ended."""
    with alone():
        known = remembered()
        if known is None:
            return ()
        running = known.running()
        for group in ([s for s in running if s.name != "server"], [s for s in running if s.name == "server"]):
            _end([process for service in group if (process := service.process())])
        forget()
        return running


# --- what is started ----------------------------------------------------------------------------------------------


def _server_command(url: str, named: str | None) -> list[str]:
    place = urlsplit(url)
    if place.hostname not in (HOST, "localhost"):
        raise ConfigError(
            "the Prefect server does not answer", where="PREFECT_API_URL", got=named, do="Start it, or unset the name"
        )
    port = place.port or 4200
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise ConfigError(
                "another program listens on this port",
                where=f"{HOST}:{port}",
                do=f"Choose another with `--port`, or set PREFECT_API_URL=http://{HOST}:{port}/api if it is a Prefect "
                "server that you want to use",
            )
    return ["server", "start", "--host", HOST, "--port", str(port)]


def _worker_command(pool: str) -> list[str]:
    return ["worker", "start", "--pool", pool, "--name", f"align-{pool}", "--no-create-pool-if-not-found"]


@contextmanager
def _held_back(name: str, command: Sequence[str], url: str) -> Iterator[Service]:
    """A process that begins its work after the block, and not at all where the block is never left."""
    defaults = {
        "PREFECT_WORKER_QUERY_SECONDS": "2",  # a click should not wait ten
        "PYTHONSAFEPATH": "1",  # a folder of the user's that is called `datasets` must not stand in for the package
        **COUNTS_KEPT,
    }
    log = log_file(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    waiting = ["sh", "-c", 'read -r word && exec "$@" < /dev/null', "sh"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*waiting, sys.executable, "-P", "-m", "prefect", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={**defaults, **os.environ, "PREFECT_API_URL": url, "PREFECT_UI_API_URL": url},
            start_new_session=True,
        )
    assert process.stdin
    with process.stdin as word:
        yield Service(name, process.pid, psutil.Process(process.pid).create_time())
        word.write(b"begin\n")


def log_file(name: str) -> Path:
    """Where a service's output goes."""
    return record().parent / "align" / f"{name}.log"


# --- waiting ------------------------------------------------------------------------------------------------------


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.TransportError:
        return False


def _await_server(url: str, server: Service | None) -> None:
    _await(lambda: _answers(url), [server] if server else [], "the Prefect server does not answer")


def _await_workers(state: Services, pools: Iterable[str]) -> None:
    def ready() -> bool:
        filters = [httpx.post(f"{state.url}/work_pools/{pool}/workers/filter", json={}, timeout=30) for pool in pools]
        return all(any(w["status"] == "ONLINE" for w in answer.json()) for answer in filters)

    _await(ready, state.services, "a worker did not start")


def _await(ready: Callable[[], bool], needed: Sequence[Service], fault: str) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while not ready():
        dead = next((service for service in needed if service.process() is None), None)
        if dead or time.monotonic() > deadline:
            log = log_file((dead or needed[-1]).name)
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
            said = "".join(f"\n  {line}" for line in lines)
            raise AlignmentError(
                fault, where=str(log), do=f"`align down` ends the rest. The last lines of its log:{said}"
            )
        time.sleep(POLL_SECONDS)


def _end(processes: Sequence[psutil.Process]) -> None:
    """SIGTERM, time for checkpoints, SIGKILL; flow runs that outlive their worker included."""
    below = [child for process in processes for child in process.children(recursive=True)]
    # First the flow runs themselves, which then report their end. Of a run that dies with its worker nobody does: it
    # would be shown as running, and keep its pool's place, until the automation takes it for dead.
    runs = [child for process in processes for child in process.children() if _is_flow_run(child)]
    _terminate(runs)
    psutil.wait_procs(runs, timeout=STOP_SECONDS)
    _terminate(processes)
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


def _terminate(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
