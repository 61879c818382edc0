"""The PostgreSQL server of `align up`: its data survive kills, nobody else can open it, and it is found or refused."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from alignment_core.errors import ConfigError
from alignment_core.feedback import open_feedback
from alignment_core.temporary import temporary_folder
from alignment_flows.serve import database as module
from alignment_flows.serve.database import Database, database


@contextmanager
def running(postgres: Database) -> Iterator[subprocess.Popen[bytes]]:
    """Run the server until the block ends."""
    with subprocess.Popen(postgres.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 60
            while not postgres.ready():
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield server
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)


def sql(postgres: Database, statement: str) -> str:
    command = [str(postgres.programs / "psql"), "-h", str(postgres.socket), "-U", "postgres", "-tA", "prefect"]
    return subprocess.run([*command, "-c", statement], capture_output=True, text=True, check=True).stdout.strip()


def opened(home: Path) -> Database:
    found = database(home)
    assert found is not None
    return found


def test_data_survive_a_kill(tmp_path: Path) -> None:
    postgres = opened(tmp_path)
    with running(postgres) as server:
        postgres.create_databases()
        sql(postgres, "CREATE EXTENSION pg_trgm")  # Prefect's server needs it
        sql(postgres, "CREATE TABLE kept AS SELECT 7 AS number")
        server.kill()
        server.wait()
    with running(opened(tmp_path)):
        postgres.create_databases()  # the existing ones stay
        assert sql(postgres, "SELECT number FROM kept") == "7"


def test_only_the_owner_can_open_the_socket(tmp_path: Path) -> None:
    postgres = opened(tmp_path)
    with running(postgres):
        place = postgres.socket / ".s.PGSQL.5432"
        assert stat.S_ISSOCK(place.stat().st_mode)
        assert stat.S_IMODE(place.stat().st_mode) & 0o077 == 0
        assert stat.S_IMODE(postgres.socket.stat().st_mode) == 0o700
        assert place.stat().st_uid == os.geteuid()


def test_a_long_path_gets_a_short_socket(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 40)
    home.mkdir()
    postgres = opened(home)
    assert len(str(postgres.socket)) < 80
    assert stat.S_IMODE(postgres.socket.stat().st_mode) == 0o700
    with running(postgres):
        postgres.create_databases()
        assert sql(postgres, "SELECT 1") == "1"


@pytest.fixture
def system() -> Iterator[Path]:
    """A folder with a short path, because sockets are in it."""
    with temporary_folder("t") as folder:
        yield folder


def test_short_folders_of_killed_servers_go_with_the_next(
    system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder for temporary files holds one of a running server, one of a killed server, and one of the user."""
    monkeypatch.setattr(tempfile, "tempdir", str(system))
    running_one, killed, users, new = (system / f"align-{digit * 16}" for digit in "abcd")
    for folder in (running_one, killed, users, new):
        folder.mkdir()
    (users / "notes").touch()
    (killed / f"{module.SOCKET}.lock").touch()
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as listening:
        dead.bind(str(killed / module.SOCKET))
        dead.close()
        listening.bind(str(running_one / module.SOCKET))
        listening.listen()
        for folder in (running_one, killed, users):
            os.utime(folder, (0, 0))
        home = tmp_path / ("long" * 40)
        home.mkdir()
        postgres = opened(home)
        assert {*system.glob("align-*")} == {running_one, users, new, postgres.socket}
    module.remove_socket_folder(home)
    assert not postgres.socket.exists()
    opened(tmp_path / "home")
    module.remove_socket_folder(tmp_path / "home")  # its socket is in PREFECT_HOME
    assert (tmp_path / "home" / "align" / "postgres").is_dir()


def test_a_killed_initialization_does_not_block_the_next(tmp_path: Path) -> None:
    postgres = opened(tmp_path)
    half = postgres.data.with_name("data.new")
    half.mkdir()
    (half / "PG_VERSION").write_text("9\n")
    postgres.command()
    assert (postgres.data / "PG_VERSION").read_text() != "9\n"
    assert {path.name for path in postgres.data.parent.iterdir()} == {"data"}


def test_the_feedback_store_can_be_in_it(tmp_path: Path) -> None:
    postgres = opened(tmp_path)
    with running(postgres):
        postgres.create_databases()
        with open_feedback(postgres.url("feedback")) as store:
            assert store.newest() == 0


def test_data_of_another_version_are_refused_and_kept(tmp_path: Path) -> None:
    data = tmp_path / "align" / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("9\n")
    with pytest.raises(ConfigError, match=r"another version of PostgreSQL\..* got .*, expected PostgreSQL 9\."):
        database(tmp_path)
    assert (data / "PG_VERSION").read_text() == "9\n"


def test_without_postgresql_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_installed", list)
    assert database(tmp_path) is None


def test_where_it_may_not_run_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root in a container that forbids user namespaces."""
    monkeypatch.setattr(module, "_as_user", lambda command: ["false", *command])
    assert database(tmp_path) is None


def test_a_refused_database_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`psql` failed\..* got "):  # no server runs
        opened(tmp_path).create_databases()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg://somewhere/prefect"),
        ("PREFECT_SERVER_DATABASE_HOST", "somewhere"),
    ],
)
def test_a_configured_database_comes_first(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from alignment_flows.serve.services import has_other_database; print(has_other_database())"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
    monkeypatch.setenv(variable, value)
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"


def test_a_failed_initialization_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    postgres = opened(tmp_path)
    monkeypatch.setattr(module, "_as_user", lambda command: ["false", *command])
    with pytest.raises(ConfigError, match="cannot be initialized"):
        postgres.command()
    assert list(postgres.data.parent.iterdir()) == []
