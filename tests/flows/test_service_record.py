"""The record of what `align up` started: damaged, in nobody's hands, or in two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from served import ALIGN

Align = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def align(tmp_path: Path) -> Align:
    """The command with a PREFECT_HOME of its own, or with the one that is given."""

    def run(*arguments: str, home: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
        env["PREFECT_HOME"] = str(home)
        return subprocess.run([*ALIGN, *arguments], env=env, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize(
    "text", ['{"url": "http://127', '{"services": []}', '{"url": "x", "services": [{"pid": 1}]}', "[]"]
)
def test_damaged_record_is_told_and_kept(align: Align, tmp_path: Path, text: str) -> None:
    (tmp_path / "align-up.json").write_text(text)
    done = align("down")
    assert done.returncode == 2
    assert "the record of what `align up` started is damaged" in done.stderr
    assert str(tmp_path / "align-up.json") in done.stderr
    assert (tmp_path / "align-up.json").read_text() == text


def test_home_that_is_no_folder_is_told(align: Align, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = align("up", home=tmp_path / "file")
    assert done.returncode == 2
    assert "PREFECT_HOME: this folder cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


def test_port_that_cannot_be_is_told(align: Align) -> None:
    done = align("up", "--port", "99999")
    assert done.returncode == 2
    assert "65535" in done.stderr
    assert "Traceback" not in done.stderr


def test_process_that_took_over_an_id_is_left_alone(align: Align, tmp_path: Path) -> None:
    """A record from before the machine was restarted names ids that others have by now."""
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = psutil.Process(stranger.pid).create_time() - 3600
    kept = {"name": "gpu", "pid": stranger.pid, "started": started}
    (tmp_path / "align-up.json").write_text(json.dumps({"url": "http://127.0.0.1:1/api", "services": [kept]}))
    done = align("down")
    alive = stranger.poll() is None
    stranger.communicate(b"\n")
    assert alive
    assert (done.returncode, done.stdout) == (0, "nothing was running\n")
    assert not (tmp_path / "align-up.json").exists()
