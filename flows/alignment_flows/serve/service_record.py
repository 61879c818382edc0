"""The record of the processes that `align up` started, in a file in PREFECT_HOME.

A process is identified by its id and start time. `align up` and `align down` hold a lock on the record, so that two
commands at once do not start or forget the same processes.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import Field, TypeAdapter, ValidationError

from alignment_core.errors import ConfigError

RECORD = "align-up.json"
"""Name of the file in PREFECT_HOME."""


@dataclass(frozen=True)
class Service:
    """A process that `align up` started.

    Attributes:
        name: `server`, or the work pool of a worker.
        pid: its process id.
        started: start time in seconds since the epoch. It distinguishes the process from a later one with the same id.
    """

    name: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    started: float

    def process(self) -> psutil.Process | None:
        """Return the process if it is still running."""
        try:
            process = psutil.Process(self.pid)
            gone = abs(process.create_time() - self.started) > 1 or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return None if gone else process


@dataclass(frozen=True)
class Services:
    """The processes that `align up` started, and the server that they use.

    Attributes:
        url: the API URL of the server.
        services: the processes, with the server first if `align up` started it.
    """

    url: Annotated[str, Field(pattern="^https?://")]
    services: tuple[Service, ...]

    def running(self) -> tuple[Service, ...]:
        """Return the processes that are still running."""
        return tuple(service for service in self.services if service.process())


_STORED = TypeAdapter(Services)


def read_record() -> Services | None:
    """Return the record of the last `align up`, whether or not its processes still run.

    Raises:
        ConfigError: the file is damaged or cannot be read.
    """
    with _os_errors_reported():
        if not record_file().exists():
            return None
        stored = record_file().read_bytes()
    try:
        return _STORED.validate_json(stored, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(
            "the record of the processes that `align up` started is damaged",
            where=str(record_file()),
            got=f"{place}: {first['msg']}" if place else first["msg"],
            do="Stop `prefect server` and `prefect worker` by hand (find them with `ps`), and delete the file",
        ) from error


def write_record(state: Services) -> None:
    """Write the record atomically.

    Raises:
        ConfigError: PREFECT_HOME is not writable.
    """
    with _os_errors_reported():
        new = record_file().with_suffix(".new")
        new.write_bytes(_STORED.dump_json(state))
        new.replace(record_file())


def delete_record() -> None:
    """Delete the record."""
    record_file().unlink(missing_ok=True)


@contextmanager
def exclusive() -> Iterator[None]:
    """Hold the lock of this PREFECT_HOME, so that one `align up` or `align down` runs at a time.

    Raises:
        ConfigError: PREFECT_HOME is not writable.
    """
    with _os_errors_reported():
        record_file().parent.mkdir(parents=True, exist_ok=True)
        lock = record_file().with_suffix(".lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def record_file() -> Path:
    """Return the path of the record."""
    from prefect.settings import PREFECT_HOME

    return Path(PREFECT_HOME.value()) / RECORD


@contextmanager
def _os_errors_reported() -> Iterator[None]:
    """Turn an OSError into a ConfigError that names PREFECT_HOME."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            "the folder cannot be used",
            where="PREFECT_HOME",
            got=f"{error.strerror}: {record_file().parent}",
            do="Set PREFECT_HOME to a writable folder",
        ) from error
