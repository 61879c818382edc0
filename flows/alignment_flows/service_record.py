"""What `align up` started, kept in a file of PREFECT_HOME: each process by its id and start time.

The file is held while `align up` or `align down` works, so that two at once do not start or forget the same things.
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


@dataclass(frozen=True)
class Service:
    """A process that `align up` started.

    Attributes:
        name: `server`, or the work pool of a worker.
        pid: its process id.
        started: when it started, in seconds since the epoch, which no other process of the same id shares.
    """

    name: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    started: float

    def process(self) -> psutil.Process | None:
        """The process, if it is still there."""
        try:
            process = psutil.Process(self.pid)
            gone = abs(process.create_time() - self.started) > 1 or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return None if gone else process


@dataclass(frozen=True)
class Services:
    """What `align up` started, and the server that it works with.

    Attributes:
        url: the server's API.
        services: the processes that were started, the server (if it is ours) first.
    """

    url: Annotated[str, Field(pattern="^https?://")]
    services: tuple[Service, ...]

    def running(self) -> tuple[Service, ...]:
        return tuple(service for service in self.services if service.process())


_STORED = TypeAdapter(Services)


def remembered() -> Services | None:
    """What `align up` left behind, whether it still runs or not.

    Raises:
        ConfigError: the file is damaged, or cannot be read.
    """
    with _told():
        if not record().exists():
            return None
        stored = record().read_bytes()
    try:
        return _STORED.validate_json(stored, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(
            "the record of what `align up` started is damaged",
            where=str(record()),
            got=f"{place}: {first['msg']}" if place else first["msg"],
            do="End what it started by hand (`ps` shows `prefect server` and `prefect worker`), and remove the file",
        ) from error


def remember(state: Services) -> None:
    """Keep what was started, written whole or not at all.

    Raises:
        ConfigError: PREFECT_HOME cannot be written to.
    """
    with _told():
        new = record().with_suffix(".new")
        new.write_bytes(_STORED.dump_json(state))
        new.replace(record())


def forget() -> None:
    """Nothing runs any more."""
    record().unlink(missing_ok=True)


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other `align up` or `align down` works with this PREFECT_HOME, and keep others out.

    Raises:
        ConfigError: PREFECT_HOME cannot be written to.
    """
    with _told():
        record().parent.mkdir(parents=True, exist_ok=True)
        lock = record().with_suffix(".lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def record() -> Path:
    """The file."""
    from prefect.settings import PREFECT_HOME

    return Path(PREFECT_HOME.value()) / "align-up.json"


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            "this folder cannot be used",
            where="PREFECT_HOME",
            got=f"{error.strerror}: {record().parent}",
            do="Give it a folder that you may write to",
        ) from error
