"""The command behind `make verify` counts what pytest reports, names what failed and why tests were skipped, and goes
on where it was interrupted."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from verify import verify

FIRST = """
import pytest
def test_good(): pass
def test_bad(): assert False
@pytest.mark.slow
def test_long(): pass
"""
SECOND = """
import pytest
@pytest.mark.slow
@pytest.mark.skip(reason="needs a moon")
def test_moon(): pass
"""
MARKERS = "[tool.pytest.ini_options]\nmarkers = ['ci', 'slow', 'peer', 'gpu']\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(MARKERS)
    for name, text in (("one", FIRST), ("two", SECOND)):
        (tmp_path / "tests" / name).mkdir(parents=True)
        (tmp_path / "tests" / name / f"test_{name}.py").write_text(text)
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def rows(table: Path) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in table.read_text().splitlines() if line.startswith("| ")]
    return {line[0]: line[1:] for line in lines}


def test_outcome_of_every_tier(project: Path, tmp_path: Path) -> None:
    out = tmp_path / "verify.md"
    options = ["-q", "-p", "no:cacheprovider"]
    assert verify(project, ["slow"], out, options)
    assert rows(out)["slow"][:3] == ["1", "0", "1"]
    assert "default" in rows(out)["default"][-1]  # not run yet
    assert "slow: 1 × needs a moon" in out.read_text()

    report = next(project.glob(".verify/*/slow-one.xml"))
    before = report.stat().st_mtime_ns
    assert not verify(project, ["default", "slow"], out, options)
    assert report.stat().st_mtime_ns == before
    assert rows(out)["default"][:3] == ["1", "1", "0"]
    assert "default: `tests.one.test_one::test_bad`" in out.read_text()


def test_interrupted_part_runs_again(project: Path, tmp_path: Path) -> None:
    out = tmp_path / "verify.md"
    (project / "tests" / "one" / "test_one.py").write_text(
        "import os, pytest\npytest.mark.slow\nos.kill(os.getpid(), 9)"
    )
    with pytest.raises(SystemExit, match="pytest ended with -9"):
        verify(project, ["slow"], out, ["-q"])
    assert not list(project.glob(".verify/*/slow-one.xml"))
