"""The record of the processes that `align up` started: damaged records, invalid folders, and reused process ids."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from prefect.settings import PREFECT_HOME, temporary_settings
from served import ALIGN

from alignment_core.errors import ConfigError
from alignment_flows.serve.service_record import read_record

Align = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def align(tmp_path: Path) -> Align:
    """Return a function that runs the command with a separate PREFECT_HOME or with the given one."""

    def run(*arguments: str, home: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
        env["PREFECT_HOME"] = str(home)
        return subprocess.run([*ALIGN, *arguments], env=env, capture_output=True, text=True, check=False)

    return run


DAMAGED = [
    b'{"url": "http://127',
    b"",
    b"[]",
    b"\xff\xfe",
    b'{"services": []}',
    b'{"url": "x", "services": []}',
    b'{"url": "http://127.0.0.1:1/api", "services": [{"pid": 1}]}',
    b'{"url": "http://127.0.0.1:1/api", "services": [{"name": "gpu", "pid": "1", "started": 0}]}',
    b'{"url": "http://127.0.0.1:1/api", "services": [{"name": "gpu", "pid": -1, "started": 0}]}',
]


@pytest.mark.parametrize("damaged", DAMAGED)
def test_damaged_record_is_refused_and_kept(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "align-up.json").write_bytes(damaged)
    with temporary_settings({PREFECT_HOME: tmp_path}), pytest.raises(ConfigError, match="is damaged"):
        read_record()
    assert (tmp_path / "align-up.json").read_bytes() == damaged


@pytest.mark.parametrize("command", ["up", "down"])
def test_damaged_record_is_reported_with_instructions(align: Align, tmp_path: Path, command: str) -> None:
    (tmp_path / "align-up.json").write_bytes(DAMAGED[-1])
    done = align(command)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert (
        "align-up.json: the record of the processes that `align up` started is damaged. got services.0.pid: "
        in done.stderr
    )
    assert "Stop `prefect server` and `prefect worker` by hand" in done.stderr


def test_home_that_is_not_a_folder_is_reported(align: Align, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = align("up", home=tmp_path / "file")
    assert done.returncode == 2
    assert "PREFECT_HOME: the folder cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


def test_invalid_port_is_reported(align: Align) -> None:
    done = align("up", "--port", "99999")
    assert done.returncode == 2
    assert "65535" in done.stderr
    assert "Traceback" not in done.stderr


def test_process_that_reuses_an_id_is_not_stopped(align: Align, tmp_path: Path) -> None:
    """A record from before a reboot contains ids that other processes have now."""
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = psutil.Process(stranger.pid).create_time() - 3600
    service = {"name": "gpu", "pid": stranger.pid, "started": started}
    (tmp_path / "align-up.json").write_text(json.dumps({"url": "http://127.0.0.1:1/api", "services": [service]}))
    done = align("down")
    alive = stranger.poll() is None
    stranger.communicate(b"\n")
    assert alive
    assert (done.returncode, done.stdout) == (0, "nothing was running\n")
    assert not (tmp_path / "align-up.json").exists()
