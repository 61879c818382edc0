"""The server of one run: which database it uses, when it is loaded, and what it waits for before it stops."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from prefect.server.utilities.messaging import memory

from alignment_flows.serve import temporary_server
from alignment_flows.serve.run_database import reserved_database

SQLITE = "sqlite+aiosqlite:///"


def test_each_server_has_a_database_of_its_own(tmp_path: Path) -> None:
    users = f"{SQLITE}{tmp_path}/prefect.db"
    with reserved_database(users) as first:
        assert first == users
        with reserved_database(users) as second, reserved_database(users) as third:
            assert second == f"{SQLITE}{tmp_path}/prefect-2.db"
            assert third == f"{SQLITE}{tmp_path}/prefect-3.db"
    with reserved_database(users) as again:
        assert again == users


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_database_that_another_process_has_open_is_left_alone(tmp_path: Path, mode: str) -> None:
    users, file = f"{SQLITE}{tmp_path}/prefect.db", tmp_path / "prefect.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")
        connection.execute("CREATE TABLE runs (name TEXT)")
    with reserved_database(users) as found:
        assert found == users
    script = (
        "import sqlite3, sys\n"
        f"connection = sqlite3.connect({str(file)!r}, isolation_level=None)\n"
        f"connection.execute('BEGIN{'' if mode == 'WAL' else ' IMMEDIATE'}')\n"
        "connection.execute('SELECT * FROM runs').fetchall()\n"
        f"connection.execute({'COMMIT' if mode == 'WAL' else 'SELECT 1'!r})\n"
        "print('open', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        assert server.stdout.readline() == b"open\n"
        with reserved_database(users) as found:
            assert found == f"{SQLITE}{tmp_path}/prefect-2.db"
        server.stdin.close()
    with reserved_database(users) as found:
        assert found == users


@pytest.mark.parametrize("url", ["postgresql+asyncpg://me:secret@host/prefect", f"{SQLITE}:memory:"])
def test_other_databases_serve_several_servers(url: str) -> None:
    with reserved_database(url) as first, reserved_database(url) as second:
        assert first == second == url


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Collects the starts of a server. There is no server and no `align up` in the environment."""
    starts: list[str] = []
    monkeypatch.setattr(temporary_server, "_process", lambda: starts.append("server"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return starts


def test_a_server_is_loaded_early_only_if_there_is_none(
    begun: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    temporary_server.prepare_temporary_server()
    assert begun == ["server"]
    (tmp_path / "align-up.json").touch()
    temporary_server.prepare_temporary_server()
    (tmp_path / "align-up.json").unlink()
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    temporary_server.prepare_temporary_server()
    assert begun == ["server"]


def test_a_server_stops_after_its_last_event_is_handled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events = {"published": 5, "consumed": 3, "retried": 0}
    monkeypatch.setattr(memory, "METRICS", {"events": events})

    async def stop() -> int:
        waiting = asyncio.create_task(temporary_server._all_recorded(lambda: 0))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        events["consumed"] = 5
        await waiting
        return events["consumed"]

    assert asyncio.run(stop()) == 5
    assert capsys.readouterr().err == ""


def test_a_server_that_cannot_finish_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "METRICS", {})
    monkeypatch.setattr(temporary_server, "STUCK_SECONDS", 0.05)
    asyncio.run(temporary_server._all_recorded(lambda: 1))
    assert capsys.readouterr().err == "align: the end of the run may be missing in Prefect's database.\n"


RUN = """
from alignment_flows.serve.local.server import prefect_server, prepare_server
prepare_server()
with prefect_server():
    from prefect import flow, task
    @task
    def step() -> int: return 1
    @flow(name="pair")
    def pair() -> int: return sum(step() for _ in range(20))
    assert pair() == 20
"""


@pytest.mark.ci
def test_two_runs_at_once_are_both_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    runs = [subprocess.Popen([sys.executable, "-c", RUN], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [run.communicate(timeout=300)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    assert sum("align: another server uses" in text for text in errors) == 1, errors
    assert not any(word in text for text in errors for word in ("locked", "ERROR", "Traceback")), errors
    for name in ("prefect.db", "prefect-2.db"):
        with closing(sqlite3.connect(tmp_path / name)) as connection:
            assert connection.execute("SELECT state_type FROM flow_run").fetchall() == [("COMPLETED",)]
            assert connection.execute("SELECT state_type FROM task_run").fetchall() == [("COMPLETED",)] * 20
