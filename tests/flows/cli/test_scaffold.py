"""`align plugins new`: the generated package works without changes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ALIGN = [sys.executable, "-c", "from alignment_flows.cli.app import main; main()"]


def new(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*ALIGN, "plugins", "new", *arguments, "--folder", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


KINDS = ("optimizer", "on-policy", "format", "evaluator", "listener")


@pytest.mark.parametrize(
    "kind", [kind if kind == "listener" else pytest.param(kind, marks=pytest.mark.ci) for kind in KINDS]
)
def test_generated_tests_pass(tmp_path: Path, kind: str) -> None:
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


@pytest.mark.ci
@pytest.mark.parametrize("kind", ["format", "evaluator", "listener"])
def test_generated_plugin_is_checked_by_its_name(tmp_path: Path, install: Callable[..., None], kind: str) -> None:
    assert new(tmp_path, "my-thing", "--kind", kind).returncode == 0
    install("alignment-my-thing", (tmp_path / "alignment-my-thing" / "alignment_my_thing.py").read_text())
    done = subprocess.run([*ALIGN, "plugins", "check", "my-thing"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "passed" in done.stdout
    assert "failed" not in done.stdout


def test_generated_code_passes_the_linter_and_the_formatter(tmp_path: Path) -> None:
    for kind in KINDS:
        assert new(tmp_path, f"my-{kind}", "--kind", kind).returncode == 0
    for folder in tmp_path.iterdir():
        for arguments in (["check", "--extend-select", "I"], ["format", "--check"]):
            command = [
                sys.executable,
                "-m",
                "ruff",
                *arguments,
                "--isolated",
                "--line-length",
                "120",
                "--no-cache",
                ".",
            ]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "paragraph"),
    [
        ("dpo", "align: NAME: an installed optimizer already has this name. got dpo of alignment-flows "),
        ("My Loss", "align: NAME: the name is invalid. got My Loss, expected lower-case letters and digits, "),
        ("true", "align: NAME: the name is invalid. got true, expected lower-case letters and digits, "),
        (
            "none",
            "align: NAME: the class name is a Python keyword or hides one of the plugin's imports. got none",
        ),
        (
            "step-batch",
            "align: NAME: the class name is a Python keyword or hides one of the plugin's imports. got step-",
        ),
    ],
)
def test_invalid_names(tmp_path: Path, name: str, paragraph: str) -> None:
    done = new(tmp_path, name)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith(paragraph)
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "alignment-mine").mkdir()
    done = new(tmp_path, "mine")
    assert done.returncode == 2
    assert "the folder already exists" in done.stderr
