"""Code in responses is run against tests, within limits, and cannot claim to have passed."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from alignment_core.errors import DataError
from alignment_plugins.evaluators.sandbox import Limits, ends_well, run_program
from alignment_plugins.evaluators.unit_tests import UnitTests, code_in

ADD = "Here you are:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."
TESTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]


def score(response: str, tests: Any, **settings: Any) -> float:
    rule = UnitTests(**{"seconds": 20.0, "parallel": 1} | settings)
    (found,) = rule.scores([()], [response], [{"tests": tests}])
    return found


def test_right_code_passes() -> None:
    assert score(ADD, TESTS) == 1
    assert score("def add(a, b): return a + b", "\n".join(TESTS)) == 1


def test_the_share_of_tests_that_pass_or_all_of_them() -> None:
    half = "def add(a, b): return 3"
    assert score(half, TESTS) == 0.5
    assert score(half, TESTS, partial=False) == 0
    assert score(half, "\n".join(TESTS)) == 0


def test_programs_are_compared_by_what_they_print() -> None:
    program = "a, b = map(int, input().split())\nprint(a + b)"
    tests = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 5", "output": "10"}]
    assert score(program, tests) == 1
    assert score("print(3)", tests) == 0.5
    assert score("print('3 ')\nprint()", tests) == 0.5  # spaces at the ends of lines do not count
    assert score("print(' 3')", tests) == 0
    assert score("print(3); raise SystemExit(1)", tests) == 0


CHEATS = [
    "",
    "   \n",
    "def add(a, b): return a - b",
    "def add(a, b:",
    "import sys; sys.exit(0)",
    "import os; os._exit(0)",
    "raise SystemExit",
    "print('passed'); import os; os._exit(0)",
    "import sys; sys.stdin.close(); import os; os._exit(0)",
    "def add(a, b): raise KeyboardInterrupt",
    "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "exec('def add(a, b): return 4')",
]


@pytest.mark.parametrize("code", CHEATS)
def test_wrong_code_and_early_ends_do_not_pass(code: str) -> None:
    assert score(code, TESTS[:1]) == 0


def test_the_last_fenced_block_is_the_code() -> None:
    assert code_in("```python\nx = 1\n```\nbetter:\n```py\nx = 2\n```") == "x = 2\n"
    assert code_in("x = 3") == "x = 3"
    assert code_in("```\nx = 4\n```") == "x = 4\n"
    assert code_in("```python\nx = 5") == "```python\nx = 5"  # no end
    start = time.perf_counter()
    code_in("```python\n" * 20_000)
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize("tests", ["", [], [""], [1], {}, [{"input": "1"}], None])
def test_facts_that_are_no_tests_are_errors(tests: Any) -> None:
    with pytest.raises(DataError, match="tests"):
        score(ADD, tests)


# --- the sandbox ---------------------------------------------------------------------------------------------------


def assert_all_gone(mark: str) -> None:
    """Wait until no process has the mark in its command or its folder. The system ends them in its own time."""
    for _ in range(100):
        found = [process.info for process in psutil.process_iter(["cmdline", "cwd"])]
        if not any(mark in " ".join([*(info["cmdline"] or []), info["cwd"] or ""]) for info in found):
            return
        time.sleep(0.1)
    pytest.fail(f"a process with {mark} is left")


def test_time_is_limited_and_nothing_survives() -> None:
    sleeper = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(987654)'])\n"
    start = time.perf_counter()
    assert run_program(sleeper + "import time\ntime.sleep(60)", "", Limits(3.0, 512)) is None
    assert time.perf_counter() - start < 20
    assert_all_gone("987654")


def test_a_busy_loop_ends() -> None:
    start = time.perf_counter()
    assert not ends_well("while True: pass", Limits(1.0, 512))
    assert time.perf_counter() - start < 20


def test_memory_is_limited() -> None:
    assert run_program("x = bytearray(2**20)\nprint('ok')", "", Limits(20.0, 256)) == "ok\n"
    assert run_program("x = bytearray(2**29)\nprint('ok')", "", Limits(20.0, 256)) is None


def test_output_and_files_are_limited() -> None:
    found = run_program("print('x' * 10**6)", "", Limits(20.0, 512))
    assert found is not None
    assert len(found) == 64 * 1024
    big = "f = open('big', 'wb')\nfor _ in range(64): f.write(bytes(2**20)); f.flush()\nprint('ok')"
    assert run_program(big, "", Limits(20.0, 512)) is None


def test_environment_and_folder_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    program = "import os, sys\nprint(dict(os.environ), sorted(os.listdir('.')), sys.argv, sys.flags.isolated)"
    found = run_program(program, "", Limits(20.0, 512))
    assert found is not None
    assert found.split() == ["{}", "['.output',", "'program.py']", "['-c']", "1"]


def test_the_folder_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run_program("open('left', 'w').write('x')\nprint('ok')", "", Limits(20.0, 512)) == "ok\n"
    (parent,) = tmp_path.iterdir()
    assert list(parent.iterdir()) == []


def _namespaces() -> bool:
    """Whether this system gives an unprivileged process a network namespace."""
    import subprocess

    return subprocess.run(["unshare", "--user", "--net", "true"], capture_output=True, check=False).returncode == 0


def test_there_is_no_network_where_the_system_allows_it() -> None:
    if not _namespaces():
        pytest.skip("this system gives no network namespace")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=5)\nprint('connected')"
        assert run_program(program, "", Limits(20.0, 512)) is None


def test_a_process_that_left_its_group_does_not_survive_where_the_system_allows_it() -> None:
    if not _namespaces():
        pytest.skip("this system gives no namespaces")
    program = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(876543)'], "
    program += "start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)\nprint('ok')"
    assert run_program(program, "", Limits(20.0, 512)) == "ok\n"
    assert_all_gone("876543")


def test_a_fork_bomb_ends_where_the_system_allows_it() -> None:
    if not _namespaces():
        pytest.skip("this system gives no namespaces")
    program = "import os\nwhile True: os.fork()"
    assert run_program(program, "", Limits(2.0, 512)) is None
    assert_all_gone("align-sandbox")


def test_a_program_cannot_end_another_one() -> None:
    """Each program has a process group of its own, which dies with it."""
    assert run_program("import os, signal\nos.killpg(0, signal.SIGKILL)", "", Limits(20.0, 512)) is None


def test_many_responses_at_a_time_from_a_thread() -> None:
    found: list[list[float]] = []

    def work() -> None:
        rule = UnitTests(seconds=60.0, parallel=4)
        codes = [f"def f(): return {i}" for i in range(8)]
        found.append(rule.scores([()] * 8, codes, [{"tests": f"assert f() == {i - i % 2}"} for i in range(8)]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[1, 0] * 4]
