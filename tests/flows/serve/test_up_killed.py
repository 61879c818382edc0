"""`align up` that is killed or fails midway: the next one continues, and `align down` stops every process."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from served import Served, alive, kill, processes_with, until

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Served]:
    """Return a place where nothing was started. Nothing may be left there at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    here = Served(f"http://127.0.0.1:{port}", tmp_path, tmp_path / "home")
    yield here
    here.align("down")
    until(lambda: not left(here), lambda: left(here))


def left(here: Served) -> list[int]:
    return [process for process in processes_with("PREFECT_HOME", str(here.home)) if alive(process)]


def up(here: Served) -> subprocess.CompletedProcess[str]:
    return here.align("up", "--port", here.url.rpartition(":")[2])


def at_work(here: Served) -> dict[str, int]:
    """Return the recorded services that run. Before that, each is a shell that waits for a line of input."""
    written = here.services() if (here.home / "align-up.json").exists() else {}
    return {name: process for name, process in written.items() if "python" in program_of(process)}


def program_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/exe").readlink().name
    except FileNotFoundError:  # it has ended
        return ""


def answers(here: Served) -> bool:
    try:
        return httpx.get(f"{here.url}/api/health", timeout=5).is_success
    except httpx.TransportError:
        return False


MOMENTS: dict[str, Callable[[Served], object]] = {
    "the server is starting": lambda here: "server" in at_work(here),
    "deployments are being registered": answers,
    "one worker is missing": lambda here: "gpu" in at_work(here),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_next_up_continues_after_a_kill(fresh: Served, moment: str) -> None:
    here = fresh
    with here.start_align("up", "--port", here.url.rpartition(":")[2]) as command:
        until(lambda: MOMENTS[moment](here))
        kill(command.pid)
    before = at_work(here)
    assert before["server"] in left(here)
    again = up(here)
    assert again.returncode == 0, again.stderr
    after = here.services()
    assert after.keys() == {"server", "database", "stages", "gpu", "cpu"}
    assert before.items() <= after.items(), "a running service was started again"
    assert here.deployment("demo/demo")["status"] == "READY"
    assert here.align("down").stdout.startswith("stopped: server, ")


@pytest.mark.slow
def test_down_stops_what_a_killed_up_started(fresh: Served) -> None:
    here = fresh
    with here.start_align("up", "--port", here.url.rpartition(":")[2]) as command:
        until(lambda: "server" in at_work(here))
        kill(command.pid)
    assert here.align("down").stdout.startswith("stopped: server, database")  # and workers that already run
    assert here.align("down").stdout == "nothing was running\n"


def test_process_that_cannot_be_recorded_is_not_started(fresh: Served) -> None:
    """A process waits until the record contains it. Otherwise it could run forever without being found."""
    here = fresh
    (here.home / "align-up.new").mkdir(parents=True)
    refused = up(here)
    assert refused.returncode == 2
    assert "PREFECT_HOME: the folder cannot be used" in refused.stderr
    until(lambda: not left(here), lambda: left(here))
    assert not answers(here)
