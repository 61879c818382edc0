"""A forked process has the streams, arguments and environment of a spawned one, and follows its parent."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment_core.errors import StageCrashed
from alignment_core.execution.build import build
from alignment_core.execution.stage import StageCall
from alignment_core.processes import fork_client, start
from alignment_core.progress import Silent

MODULE = """
import json, os, random, sys, time

def main():
    os.write(int(sys.argv[1]), b"passed")
    what = json.loads(sys.stdin.read())
    if what == "wait":
        time.sleep(60)
    seen = {name: value for name, value in os.environ.items() if name.startswith(("FORK_", "OMP_", "GLIBC"))}
    print(json.dumps({
        "arguments": len(sys.argv), "folder": os.getcwd(), "umask": os.umask(0), "environment": seen,
        "threads": len(os.listdir("/proc/self/task")), "files": len(os.listdir("/proc/self/fd")),
        "text": (sys.stdout.encoding, sys.stderr.errors),
    }))
    print("to stderr", file=sys.stderr)
    sys.exit(what)

if __name__ == "__main__":
    main()
"""


class Run:
    """A started module with its streams."""

    def __init__(self, what: object) -> None:
        self.stdout, self.stderr = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        reading, writing = os.pipe()
        with tempfile.TemporaryFile() as stdin:
            stdin.write(json.dumps(what).encode())
            stdin.seek(0)
            files = {"stdin": stdin.fileno(), "stdout": self.stdout.fileno(), "stderr": self.stderr.fileno()}
            self.child = start.start_module("forked_module", **files, passed=(writing,))
        os.close(writing)
        with open(reading, "rb") as pipe:
            self.passed = pipe.read(6)

    def answer(self) -> tuple[int, Any, str]:
        code = self.child.wait()
        self.stdout.seek(0)
        self.stderr.seek(0)
        return code, json.loads(self.stdout.read() or "null"), self.stderr.read().decode()

    def close(self) -> None:
        self.stdout.close()
        self.stderr.close()


def stop_other_server() -> None:
    """Stop the fork server of this process if an earlier test started it with another environment."""
    if fork_client._own is not None and not fork_client._own.fits(start.ENVIRONMENT | dict(os.environ)):
        fork_client.stop_server()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    (folder / "forked_module.py").write_text(MODULE)
    return folder


@pytest.fixture
def run(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[object], Run]]:
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    monkeypatch.delenv(fork_client.SHARED)
    stop_other_server()
    runs: list[Run] = []

    def begin(what: object) -> Run:
        runs.append(Run(what))
        return runs[-1]

    yield begin
    for each in runs:
        each.close()


def test_forked_process_is_like_a_spawned_one(
    run: Callable[[object], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    previous = os.umask(0o027)
    try:
        forked = run(3)
        with monkeypatch.context() as patch:
            patch.setattr(start, "fork_module", lambda *_, **__: None)
            spawned = run(3)
    finally:
        os.umask(previous)
    assert isinstance(forked.child, fork_client.ForkedProcess)
    assert isinstance(spawned.child, subprocess.Popen)
    assert forked.passed == spawned.passed == b"passed"
    assert forked.answer() == spawned.answer()
    code, answer, errors = forked.answer()
    assert (code, answer["folder"], answer["umask"], errors) == (3, str(tmp_path), 0o027, "to stderr\n")
    assert answer["threads"] == 1


def test_changed_environment_reaches_the_process(run: Callable[[object], Run], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "FORK_TEST" not in run(0).answer()[1]["environment"]
    monkeypatch.setenv("FORK_TEST", "1")
    changed = run(0)
    assert isinstance(changed.child, subprocess.Popen), "the libraries may have read the variable on import"
    assert changed.answer()[1]["environment"]["FORK_TEST"] == "1"


def test_signals_and_exit_codes_pass_through_the_server(run: Callable[[object], Run]) -> None:
    waiting = run("wait")
    assert waiting.child.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.child.wait(0.05)
    waiting.child.terminate()
    assert waiting.child.wait(10) == -signal.SIGTERM
    assert waiting.child.poll() == -signal.SIGTERM
    waiting.child.kill()  # has no effect, whatever process has its number now
    killed = run("wait")
    killed.child.kill()
    assert killed.child.wait(10) == -signal.SIGKILL


def test_light_module_does_not_wait_for_the_imports(run: Callable[[object], Run]) -> None:
    fork_client.stop_server()
    assert fork_client.fork_module("forked_module", (0, 1, 2), (), dict(os.environ), wait=False) is None
    assert fork_client.fork_module("forked_module", (0, 1, 2), (), dict(os.environ), wait=False) is None


def test_light_module_starts_no_second_server_beside_a_busy_one(
    run: Callable[[object], Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fork_client.stop_server()
    with socket.socket(socket.AF_UNIX) as busy:
        with fork_client.short_path(tmp_path / "busy") as short:
            busy.bind(short)
        busy.listen()
        monkeypatch.setenv(fork_client.SHARED, str(tmp_path / "busy"))
        assert fork_client.fork_module("forked_module", (0, 1, 2), (), dict(os.environ), wait=False) is None
    assert fork_client._own is None
    # Once it has ended, a server of this process takes its place.
    assert fork_client.fork_module("forked_module", (0, 1, 2), (), dict(os.environ), wait=False) is None
    assert fork_client._own is not None


@pytest.mark.ci
def test_killed_server_stops_its_stage(probe: Callable[..., StageCall], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(fork_client.SHARED, raising=False)  # other tests have stages in the shared one

    def kill_server() -> None:
        stage = int((wait.runtime.store / ".building" / wait.key / "checkpoints" / "starts").read_text().split()[-1])
        parent = int(Path(f"/proc/{stage}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGKILL)

    class Killer(Silent):
        def step(self, done: int, total: int, metrics: object = None) -> None:
            kill_server()

    stop_other_server()
    wait = probe("wait")
    with pytest.raises(StageCrashed) as caught:
        build(wait, Killer())
    assert caught.value.killed or "asked to stop" in str(caught.value)


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_allocator_of_a_gpu_grows_its_segments_unless_the_user_sets_it(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    seen: list[dict[str, str]] = []
    monkeypatch.delenv(name, raising=False)

    def note(*given: Any, **_: Any) -> object:
        seen.append(given[3])
        return object()

    monkeypatch.setattr(start, "fork_module", note)
    start.start_module("any", stdin=0, stdout=1, stderr=2)
    monkeypatch.setenv(name, "backend:cudaMallocAsync")
    start.start_module("any", stdin=0, stdout=1, stderr=2)
    assert seen[0]["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert {seen[1].get(each) for each in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")} - {None} == {
        "backend:cudaMallocAsync"
    }
