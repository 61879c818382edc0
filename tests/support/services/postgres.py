"""A temporary PostgreSQL server from the system's package."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

STARTUP_SECONDS = 300
ACCOUNT = "postgres"
"""The package's system account, because the server refuses to run as root."""

PROGRAMS = ("initdb", "postgres", "createdb", "pg_isready")


@dataclass(frozen=True)
class Postgres:
    """A server on the loopback interface.

    Attributes:
        bin: folder of PostgreSQL's programs.
        port: the port it listens on.
        password: the password of its user `postgres`.
    """

    bin: Path
    port: int
    password: str

    def create_database(self) -> str:
        """Create an empty database. Return its URL, `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`."""
        name = f"test_{secrets.token_hex(4)}"
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--username", "postgres", name]
        _run([str(self.bin / "createdb"), *where], env={**os.environ, "PGPASSWORD": self.password})
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{name}"

    def answers(self) -> bool:
        ready = [str(self.bin / "pg_isready"), "--quiet", "--host", "127.0.0.1", "--port", str(self.port)]
        return subprocess.run(ready, check=False).returncode == 0


@contextmanager
def temporary_postgres() -> Iterator[Postgres]:
    """Start a server with a temporary data folder. Skip the test if PostgreSQL is not installed."""
    programs = _programs()
    with tempfile.TemporaryDirectory(prefix="align-tests-postgres-") as folder, socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        postgres = Postgres(programs, reserved.getsockname()[1], secrets.token_urlsafe(12))
        data, password_file, log = (Path(folder) / name for name in ("data", "password", "log"))
        password_file.write_text(postgres.password)
        if os.geteuid() == 0:
            for path in (folder, password_file):
                shutil.chown(path, ACCOUNT, ACCOUNT)
        initdb = ["--username", "postgres", "--pwfile", str(password_file), "--auth", "scram-sha-256"]
        _run([str(programs / "initdb"), "--pgdata", str(data), "--no-sync", *initdb], cwd=folder, **_account())
        reserved.close()
        # No socket file, because it would be in a folder that only the package's own server may write to.
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
        with log.open("wb") as output:
            server = subprocess.Popen(
                [str(programs / "postgres"), "-D", str(data), "-p", str(postgres.port), *settings],
                stdout=output,
                stderr=output,
                cwd=folder,
                **_account(),
            )
        try:
            deadline = time.monotonic() + STARTUP_SECONDS
            while not postgres.answers():
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield postgres
        finally:
            server.send_signal(signal.SIGINT)  # also closes open connections
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _programs() -> Path:
    """Return the folder of PostgreSQL's programs, from Debian's packages or the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).resolve().parent)
    installed = [folder for folder in found if all((folder / program).is_file() for program in PROGRAMS)]
    if not installed:
        pytest.skip("PostgreSQL is not installed: install the package `postgresql`")
    return installed[-1]


def _account() -> dict[str, Any]:
    return {"user": ACCOUNT, "group": ACCOUNT, "extra_groups": []} if os.geteuid() == 0 else {}


def _run(command: list[str], **how: Any) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **how)
    assert done.returncode == 0, done.stdout + done.stderr
