"""`align up` that is killed, or fails, in the middle: the next one goes on, and nothing is left that `down` misses."""

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
def nothing_yet(tmp_path: Path) -> Iterator[Served]:
    """Where nothing was started, and nothing must be left at the end."""
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
    """What was written down and has begun: until then it is a shell that waits for a word."""
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
def test_killed_in_the_middle(nothing_yet: Served, moment: str) -> None:
    here = nothing_yet
    with here.begun("up", "--port", here.url.rpartition(":")[2]) as command:
        until(lambda: MOMENTS[moment](here))
        kill(command.pid)
    before = at_work(here)
    assert before["server"] in left(here)
    again = up(here)
    assert again.returncode == 0, again.stderr
    after = here.services()
    assert after.keys() == {"server", "gpu", "cpu"}
    assert before.items() <= after.items(), "what ran was started once more"
    assert here.deployment("demo/demo")["status"] == "READY"
    assert here.align("down").stdout.startswith("ended: server, ")


@pytest.mark.slow
def test_killed_and_given_up(nothing_yet: Served) -> None:
    here = nothing_yet
    with here.begun("up", "--port", here.url.rpartition(":")[2]) as command:
        until(lambda: "server" in at_work(here))
        kill(command.pid)
    assert here.align("down").stdout == "ended: server\n"
    assert here.align("down").stdout == "nothing was running\n"


def test_what_cannot_be_written_down_is_not_started(nothing_yet: Served) -> None:
    """Else it would run for ever, known to nobody: so it waits until the record names it."""
    here = nothing_yet
    (here.home / "align-up.new").mkdir(parents=True)
    refused = up(here)
    assert refused.returncode == 2
    assert "PREFECT_HOME: this folder cannot be used" in refused.stderr
    until(lambda: not left(here), lambda: left(here))
    assert not answers(here)
