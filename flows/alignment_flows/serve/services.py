"""Start and stop a Prefect server and one worker per work pool on this machine, in the background.

The processes are recorded (service_record.py), so that `align down` stops these and no others.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil

from alignment_core.errors import AlignmentError, ConfigError
from alignment_core.processes.fork_client import COMMAND, SHARED
from alignment_core.processes.start import ENVIRONMENT
from alignment_flows.serve.database import Database, database, remove_socket_folder
from alignment_flows.serve.end_processes import end_processes
from alignment_flows.serve.service_record import (
    Service,
    Services,
    delete_record,
    exclusive,
    read_record,
    record_file,
    write_record,
)
from alignment_flows.serve.workers import POOLS, Worker

COUNTS_KEPT = {"PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER": "P3650D"}
"""Environment of the server. By default it forgets an event count one minute after the first event, and votes come in
over days."""

BUSY = {
    "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "30",
    "PREFECT_SERVER_DATABASE_TIMEOUT": "30",
}
"""Environment of the server. By default it gives up after 5 and 10 s, which training on all cores can take from the
database. Prefect's client waits 60 s for an answer, but does not ask again after an error."""

PREFECT = (sys.executable, "-P", "-m", "alignment_flows.serve.prefect_command")

DATABASE = "database"
STAGES = "stages"
"""The fork server for the stages of all runs of the workers."""
CONNECTION = "PREFECT_API_DATABASE_CONNECTION_URL"
HOST = "127.0.0.1"
STARTUP_SECONDS = 180.0
POLL_SECONDS = 0.2
LOG_LINES = 10


def running_server() -> str | None:
    """Return the API URL of the server that `align up` started, or None if it is not running."""
    record = read_record()
    return record.url if record and any(service.name == "server" for service in record.running()) else None


def up(
    port: int,
    workers: Sequence[Worker],
    *,
    prepare: Callable[[], object],
    register: Callable[[], object],
) -> Services:
    """Start the server and the workers that are not running, and wait until they are ready.

    Concurrent calls run one after the other.

    Args:
        port: port of the server on this machine, if PREFECT_API_URL is not set.
        workers: the workers to start.
        prepare: work that needs no server. It is called while the server starts.
        register: creates the pools and the deployments. It is called when the server answers.

    Raises:
        ConfigError: the port is in use, or the server at PREFECT_API_URL does not answer.
        AlignmentError: a process exited or did not become ready.
    """
    with exclusive():
        return _up(port, workers, prepare, register)


def _up(
    port: int, workers: Sequence[Worker], prepare: Callable[[], object], register: Callable[[], object]
) -> Services:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    record = read_record()
    named = PREFECT_API_URL.value()
    url = named or (record.url if record and record.running() else f"http://{HOST}:{port}/api")
    if record and record.running() and record.url != url:
        raise ConfigError(
            "`align up` is already running with another server",
            got=record.url,
            expected=url,
            do="Run `align down` first",
        )
    services = {service.name: service for service in (record.running() if record else ())}
    others = services.keys() - {"server", DATABASE, STAGES} - {worker.name for worker in workers}
    if others:
        raise ConfigError(
            "`align up` is already running with other workers",
            got=", ".join(sorted(others)),
            expected=", ".join(worker.name for worker in workers),
            do="Run `align down` first",
        )

    def state() -> Services:
        return Services(url, tuple(sorted(services.values(), key=lambda service: service.name != "server")))

    def start(name: str, command: Sequence[str], **environment: str) -> None:
        # Recorded before the process starts its work, so that `align down` finds it even if this command is killed.
        with _held_back(name, command, url, environment) as services[name]:
            write_record(state())

    if "server" not in services and not (named and _answers(url)):
        command, connection = _server_command(url, named), {}
        if not has_other_database() and (postgres := own_database()) is not None:
            if DATABASE not in services:
                start(DATABASE, postgres.command())
            _await(postgres.ready, [services[DATABASE]], "the database does not answer")
            postgres.create_databases()
            connection = {CONNECTION: postgres.url("prefect", driver="+asyncpg")}
        start("server", command, **connection)
    stages: dict[str, str] = {}
    if sys.platform == "linux":
        socket_file = log_file(STAGES).with_suffix(".socket")
        if STAGES not in services:
            start(STAGES, [*COMMAND, str(socket_file)], **(ENVIRONMENT | dict(os.environ)))
        stages = {SHARED: str(socket_file)}
    for worker in workers:
        if worker.name not in services:
            start(worker.name, _worker_command(worker), **stages, **worker.environment)
    prepare()
    _await_server(url, services.get("server"))
    with temporary_settings({PREFECT_API_URL: url}):
        register()
    _await_workers(state(), workers)
    return state()


def down() -> tuple[Service, ...]:
    """Stop the processes that `align up` started and return them.

    The workers stop before the server, so that the server records how their runs ended.
    """
    with exclusive():
        record = read_record()
        if record is None:
            return ()
        running = record.running()
        order = {"server": 1, DATABASE: 2}
        for place in range(3):
            group = [service for service in running if order.get(service.name, 0) == place]
            # To PostgreSQL, SIGTERM means to wait for clients that stay connected.
            how = signal.SIGINT if place == order[DATABASE] else signal.SIGTERM
            end_processes([process for service in group if (process := service.process())], how)
        delete_record()
        if any(service.name == DATABASE for service in running):
            remove_socket_folder(record_file().parent)
        return running


def has_other_database() -> bool:
    """Return whether the user configured a database for Prefect's server."""
    from prefect.settings import get_current_settings

    return bool({"connection_url", "driver", "host"} & get_current_settings().server.database.model_fields_set)


def own_database() -> Database | None:
    """Return the database that `align up` runs for its server, or None if PostgreSQL cannot run here.

    Raises:
        ConfigError: the data are from another version of PostgreSQL.
    """
    from prefect.settings import PREFECT_HOME

    return database(Path(PREFECT_HOME.value()))


# --- starting processes -------------------------------------------------------------------------------------------


def _server_command(url: str, named: str | None) -> list[str]:
    place = urlsplit(url)
    if place.hostname not in (HOST, "localhost"):
        raise ConfigError(
            "the Prefect server does not answer",
            where="PREFECT_API_URL",
            got=named,
            do="Start the server, or unset PREFECT_API_URL",
        )
    port = place.port or 4200
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise ConfigError(
                "the port is in use by another program",
                where=f"{HOST}:{port}",
                do=f"Choose another port with `--port`. To use a Prefect server that runs there, set "
                f"PREFECT_API_URL=http://{HOST}:{port}/api",
            )
    return [*PREFECT, "server", "start", "--host", HOST, "--port", str(port)]


def _worker_command(worker: Worker) -> list[str]:
    at_once = [] if (limit := POOLS[worker.pool]) is None else ["--limit", str(limit)]
    name = ["--name", f"align-{worker.name}", "--no-create-pool-if-not-found"]
    return [*PREFECT, "worker", "start", "--pool", worker.pool, *name, *at_once]


@contextmanager
def _held_back(name: str, command: Sequence[str], url: str, environment: Mapping[str, str]) -> Iterator[Service]:
    """Start a process that begins its work after the block. If this process is killed within the block, it exits."""
    defaults = {
        "PREFECT_WORKER_QUERY_SECONDS": "2",  # start a run soon after a click; the default is 10 s
        "PYTHONSAFEPATH": "1",  # a folder such as `datasets` in the working directory must not shadow a package
        **COUNTS_KEPT,
        **BUSY,
    }
    log = log_file(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    waiting = ["sh", "-c", 'read -r word && exec "$@" < /dev/null', "sh"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*waiting, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={**defaults, **os.environ, **environment, "PREFECT_API_URL": url, "PREFECT_UI_API_URL": url},
            start_new_session=True,
        )
    assert process.stdin
    with process.stdin as word:
        yield Service(name, process.pid, psutil.Process(process.pid).create_time())
        word.write(b"begin\n")


def log_file(name: str) -> Path:
    """Return the log file of a service."""
    return record_file().parent / "align" / f"{name}.log"


# --- waiting ------------------------------------------------------------------------------------------------------


@cache
def _http() -> httpx.Client:
    """Return one client for all requests: a new one reads the system's certificates, which takes much longer."""
    return httpx.Client(timeout=30)


def _answers(url: str) -> bool:
    try:
        return _http().get(f"{url}/health", timeout=5).is_success
    except httpx.TransportError:
        return False


def _await_server(url: str, server: Service | None) -> None:
    _await(lambda: _answers(url), [server] if server else [], "the Prefect server does not answer")


def _await_workers(state: Services, workers: Sequence[Worker]) -> None:
    def ready() -> bool:
        pools = {worker.pool for worker in workers}
        answers = [_http().post(f"{state.url}/work_pools/{pool}/workers/filter", json={}) for pool in pools]
        online = {each["name"] for answer in answers for each in answer.json() if each["status"] == "ONLINE"}
        return online.issuperset(f"align-{worker.name}" for worker in workers)

    _await(ready, state.services, "a worker did not start")


def _await(ready: Callable[[], bool], needed: Sequence[Service], fault: str) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while not ready():
        dead = next((service for service in needed if service.process() is None), None)
        if dead or time.monotonic() > deadline:
            log = log_file((dead or needed[-1]).name)
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
            tail = "".join(f"\n  {line}" for line in lines)
            raise AlignmentError(
                fault, where=str(log), do=f"Run `align down` to stop the others. The log ends with:{tail}"
            )
        time.sleep(POLL_SECONDS)
