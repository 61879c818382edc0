"""`benchmarks/gpu.py` as a command: processes that fail, hang or are killed, and a start after each of them."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from gpu_cases.catalogue import Case
from gpu_cases.driver import Machine, run_cases
from gpu_cases.needs import PACKAGES, how_to_carry
from gpu_cases.results_file import ResultsFile

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-P", str(ROOT / "benchmarks" / "gpu.py")]
MACHINE = Machine("cpu", [], "2.13", {})
pytestmark = pytest.mark.ci


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command without the checkout on PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([*COMMAND, *arguments], text=True, capture_output=True, env=environment, check=False)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return ResultsFile(folder).read()


def test_a_case_that_raises_dies_or_hangs_is_written_down_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = tmp_path / "sitecustomize"
    dying.mkdir()
    # Code of a process that dies: it runs before the case does, and only for this one.
    code = "import os, sys\nif any('\"dies\"' in word for word in sys.argv): os.abort()\n"
    (dying / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(dying), os.environ.get("PYTHONPATH", "")]))
    todo = [
        Case("raises", "gradients", {"task": "nonsense"}),
        Case("dies", "generation"),
        Case("hangs", "generation", limit=0.5),
        Case("generation", "generation"),
    ]
    assert run_cases(ResultsFile(tmp_path), todo, MACHINE, None) == (3, 0)
    found = {line["case"]: line for line in lines_of(tmp_path)}
    assert list(found) == [case.name for case in todo]
    assert "nonsense" in found["raises"]["error"]
    assert "killed by signal 6" in found["dies"]["error"]
    assert found["hangs"]["error"] == "not done after 0.5 s"
    assert [line["ok"] for line in found.values()] == [False, False, False, True]
    assert len({frozenset(line) - {"date"} for line in found.values()}) == 1


def test_no_case_is_started_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    todo = [Case("long", "generation", expected=100), Case("cut", "generation", expected=0)]
    assert run_cases(ResultsFile(tmp_path), todo, MACHINE, 0.5 / 60) == (0, 2)
    assert "no time left for 2 cases: long cut" in capsys.readouterr().out
    assert lines_of(tmp_path) == []


@pytest.mark.slow
def test_the_command_is_killed_and_started_again(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path), "--only", "generation", "resuming/sft"]
    first = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "results.jsonl").exists():
        assert first.poll() is None
        time.sleep(0.1)
    while not (tmp_path / "logs" / "resuming-sft.log").exists():
        time.sleep(0.01)
    (case,) = children_of(first.pid)
    while "libtorch" not in Path(f"/proc/{case}/maps").read_text():
        time.sleep(0.01)
    os.kill(case, signal.SIGSTOP)  # a case that hangs
    try:
        first.kill()
        first.wait()
        wait_until_gone(case)
    finally:
        if alive(case):
            os.kill(case, signal.SIGKILL)
    again = command(*arguments)
    assert again.returncode == 0, again.stderr
    assert "1 cases to run, 1 already there" in again.stdout
    assert [(line["case"], line["ok"]) for line in lines_of(tmp_path)] == [("generation", True), ("resuming/sft", True)]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
    page = command("--out", str(tmp_path), "--table")
    assert "| resuming/sft | yes |" in page.stdout


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until_gone(pid: int) -> None:
    until = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < until, "a case outlived the command"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_wrong_arguments_are_answered_in_words(tmp_path: Path) -> None:
    unknown = command("--out", str(tmp_path), "--only", "train/dop/*")
    assert unknown.returncode == 2
    assert "no case matches 'train/dop/*'; `--list` shows all names" in unknown.stderr
    assert "there are no results at" in command("--out", str(tmp_path / "none"), "--table").stderr
    assert "--out is missing" in command().stderr


def test_missing_packages_are_named() -> None:
    words = how_to_carry(["bitsandbytes", "pydantic"])
    assert "missing packages: bitsandbytes, pydantic. " in words
    assert "--dest wheels bitsandbytes pydantic`" in words


def test_the_listed_packages_are_all_that_the_core_imports() -> None:
    """Read the imports of every module of this repository that the cases load."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; from gpu_cases.run_case import kinds; kinds(); "
        "from alignment_core.registry import load_registry; load_registry(); "
        "print(*{m.__file__ for m in list(sys.modules.values()) if getattr(m, '__file__', None)}, sep='\\n')"
    )
    paths = [str(ROOT / "benchmarks"), str(ROOT), str(ROOT / "plugins")]
    ran = subprocess.run([sys.executable, "-P", "-c", code, *paths], text=True, capture_output=True, check=True)
    own = [Path(name) for name in ran.stdout.split() if Path(name).is_relative_to(ROOT) and ".venv" not in name]
    assert len(own) > 100
    imported = {name for path in own for name in imports_of(path)}
    known = {"alignment_core", "alignment_plugins", "gpu_cases", "public_models"}
    assert imported - set(sys.stdlib_module_names) - known <= PACKAGES.keys()
    assert {"bitsandbytes", "pydantic", "pluggy"} <= imported


def imports_of(path: Path) -> set[str]:
    """Return the packages that a module imports when it is imported itself."""
    found = set()
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Import):
            found |= {name.name.partition(".")[0] for name in statement.names}
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            found.add((statement.module or "").partition(".")[0])
    return found
