"""`align plugins new`: what it writes works at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ALIGN = [sys.executable, "-c", "from alignment_flows.cli import main; main()"]


def new(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [*ALIGN, "plugins", "new", *words, "--folder", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.ci
@pytest.mark.parametrize("kind", ["offline", "on-policy"])
def test_its_tests_pass_at_once(tmp_path: Path, kind: str) -> None:
    done = new(tmp_path, "my-loss", "--kind", kind)
    assert (done.returncode, done.stderr) == (0, "")
    folder = tmp_path / "alignment-my-loss"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "README.md",
        "alignment_my_loss.py",
        "pyproject.toml",
        "tests/test_alignment_my_loss.py",
    ]
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert tested.returncode == 0, tested.stdout
    assert "2 passed" in tested.stdout


def test_what_it_writes_is_formatted_and_parses(tmp_path: Path) -> None:
    for kind in ("offline", "on-policy"):
        assert new(tmp_path, f"my-{kind}", "--kind", kind).returncode == 0
    for folder in tmp_path.iterdir():
        for words in (["check", "--extend-select", "I"], ["format", "--check"]):
            command = [sys.executable, "-m", "ruff", *words, "--isolated", "--line-length", "120", "--no-cache", "."]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "paragraph"),
    [
        ("dpo", "align: NAME: an installed optimizer has this name. got dpo of alignment-flows "),
        ("My Loss", "align: NAME: the name does not suit. got My Loss, expected lower-case words and dashes."),
        ("true", "align: NAME: the name does not suit. got true, expected lower-case words and dashes."),
        ("none", "align: NAME: the name does not suit: Python or the plugin's imports have it. got none."),
        ("step-batch", "align: NAME: the name does not suit: Python or the plugin's imports have it. got step-batch."),
    ],
)
def test_names_that_do_not_do(tmp_path: Path, name: str, paragraph: str) -> None:
    done = new(tmp_path, name)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith(paragraph)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "alignment-mine").mkdir()
    done = new(tmp_path, "mine")
    assert done.returncode == 2
    assert "the folder exists already" in done.stderr
