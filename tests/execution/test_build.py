"""A stage's process: its result, errors and crashes, the end of its parent process, and two builds of one key."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment_core.artifacts import ArtifactStore
from alignment_core.errors import ArtifactError, DataError, StageCrashed
from alignment_core.execution.build import build
from alignment_core.execution.finished import device_memory
from alignment_core.execution.stage import StageCall
from alignment_core.progress import Silent

Call = Callable[..., StageCall]


class Listener(Silent):
    """Progress that records every event and calls `at_step` at each step."""

    def __init__(self, at_step: Callable[[], None] = lambda: None) -> None:
        self.steps: list[tuple[int, int, Mapping[str, float] | None]] = []
        self.logs: list[str] = []
        self.warnings: list[str] = []
        self.at_step = at_step

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        self.steps.append((done, total, metrics))
        self.at_step()

    def log(self, message: str) -> None:
        self.logs.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def checkpoints(call: StageCall) -> Path:
    return call.runtime.store / ".building" / call.key / "checkpoints"


def process_of(call: StageCall) -> int:
    """Return the id of the process that last started the stage."""
    return int((checkpoints(call) / "starts").read_text().split()[-1])


def alive(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2]
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("isolation", ["process", "inline"])
def test_built_once_then_cached(probe: Call, isolation: str) -> None:
    write = probe("write", isolation)
    first, second = build(write, Silent()), build(write, Silent())
    assert (first.cached, second.cached) == (False, True)
    assert first.artifact == second.artifact
    assert first.metrics == second.metrics
    assert (first.artifact.path / "result.txt").read_text() == "write"
    manifest = first.artifact.manifest()
    assert (manifest.config, manifest.seed, manifest.version) == ({"do": "write", "seed": 3}, 3, 1)
    assert first.metrics == {"starts": 1, "warnings": []}
    assert manifest.peak_memory_bytes is not None
    assert 5e6 < manifest.peak_memory_bytes < 4e9
    assert 0 < manifest.seconds < 600


@pytest.mark.parametrize(("device", "card"), [("auto", "cuda"), ("cuda", "cuda"), ("cuda:1", "cuda:1")])
def test_memory_of_a_card_is_that_of_the_stages_own(device: str, card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 24 GiB, 17 are free and 6 reserved: 1 GiB holds the context and other programs."""

    def on_card(found: Any) -> Any:
        return lambda asked: found if asked == torch.device(card) else pytest.fail(f"asked about {asked}")

    assert device_memory(device) is None, "CUDA was not used"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", on_card((17 * 2**30, 24 * 2**30)))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", on_card(9 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", on_card(6 * 2**30))
    assert device_memory(device) == (9 * 2**30, 2**30)
    assert device_memory("cpu") is None


def test_stage_receives_the_folders_of_its_parents(probe: Call) -> None:
    parent = build(probe("write"), Silent()).artifact
    child = build(probe("write", parents={"data": parent.key}), Silent()).artifact
    assert (child.path / "data.txt").read_text() == "write"
    assert child.manifest().parents == {"data": parent.key}


def test_missing_parent_is_reported(probe: Call) -> None:
    with pytest.raises(ArtifactError, match=r"`data` artifact .* is missing"):
        build(probe("write", parents={"data": "0" * 32}), Silent())


@pytest.mark.parametrize("isolation", ["process", "inline"])
def test_progress_arrives_complete_and_in_order(probe: Call, isolation: str) -> None:
    listener = Listener()
    built = build(probe("report", isolation), listener)
    assert listener.logs == ["started"]
    assert [step[0] for step in listener.steps] == list(range(1, 2001))
    assert listener.steps[3] == (4, 2000, {"loss": 0.25})
    assert listener.warnings == ["x" * 100_000] == built.metrics["warnings"]


def test_user_error_is_raised_in_the_parent_process(probe: Call) -> None:
    with pytest.raises(DataError) as caught:
        build(probe("user error"), Silent())
    assert str(caught.value) == "data.jsonl: no rows. got 0, expected at least 1. Add some."
    assert caught.value.exit_code == 2


def test_bug_is_reported_with_the_exception_and_the_log(probe: Call) -> None:
    with pytest.raises(StageCrashed, match=r"KeyError: 'lost'") as caught:
        build(probe("bug"), Silent())
    assert "a line of the log" in str(caught.value)
    assert 'raise KeyError("lost")' in str(caught.value)


def test_out_of_memory_is_not_reported_as_a_bug(probe: Call) -> None:
    with pytest.raises(StageCrashed, match=r"out of memory: MemoryError.* Lower `token_budget`"):
        build(probe("memory"), Silent())


@pytest.mark.parametrize("isolation", ["process", "inline"])
def test_full_disk_is_reported(probe: Call, isolation: str) -> None:
    full = probe("full disk", isolation)
    with pytest.raises(ArtifactError, match=r"the disk is full\. Free some disk space and run again") as caught:
        build(full, Silent())
    assert caught.value.where
    # The saved checkpoints are kept for a resume.
    assert (checkpoints(full) / "starts").exists()


def test_early_exit_is_reported(probe: Call) -> None:
    with pytest.raises(StageCrashed, match=r"probe · exit: .* exited with code 7\.") as caught:
        build(probe("exit"), Silent())
    assert str(caught.value).endswith("  a line of the log\n  about to leave.")


def test_library_that_ends_the_process_for_lack_of_memory_is_known_by_its_last_words(probe: Call) -> None:
    with pytest.raises(StageCrashed, match=r"out of memory: .* 'Error out of memory at line'.* Lower `token_budget`"):
        build(probe("exit as bitsandbytes"), Silent())


def test_killed_stage_is_reported_and_resumes(probe: Call) -> None:
    die = probe("die once")
    with pytest.raises(StageCrashed, match=r"killed by SIGKILL|out of memory"):
        build(die, Silent())
    assert build(die, Silent()).metrics["starts"] == 2


def test_damaged_artifact_is_rebuilt_and_reported(probe: Call) -> None:
    write = probe("write")
    artifact = build(write, Silent()).artifact
    (artifact.path / "result.txt").write_text("wrong")
    listener = Listener()
    assert not build(write, listener).cached
    assert len(listener.warnings) == 1
    assert build(write, Silent()).cached


def test_interrupted_parent_lets_the_stage_save_its_checkpoint(probe: Call) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    wait = probe("wait")
    with pytest.raises(KeyboardInterrupt):
        build(wait, Listener(at_step=interrupt))
    assert (checkpoints(wait) / "saved").read_text() == "step 5"
    assert not alive(process_of(wait))


def test_stage_that_does_not_stop_is_killed(probe: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("alignment_core.execution.launcher.STOP_SECONDS", -1.5)
    hang = probe("hang")
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        build(hang, Listener(at_step=interrupt))
    assert time.monotonic() - started < 10
    assert not alive(process_of(hang))


def test_sigterm_to_only_the_stage_is_reported(probe: Call) -> None:
    wait = probe("wait")
    with pytest.raises(StageCrashed, match="asked to stop"):
        build(wait, Listener(at_step=lambda: os.kill(process_of(wait), signal.SIGTERM)))
    assert (checkpoints(wait) / "saved").exists()


PARENT = """
import sys
from alignment_core.progress import Silent
from alignment_core.execution.stage import StageCall
from alignment_core.execution.build import build
from alignment_core.execution.finished import device_memory
built = build(StageCall.model_validate_json(sys.stdin.readline()), Silent())
print(built.cached)
"""


def start_parent(call: StageCall) -> subprocess.Popen[str]:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdin is not None
    parent.stdin.write(call.model_dump_json() + "\n")
    parent.stdin.close()
    return parent


@pytest.fixture
def parents() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for parent in started:
        parent.kill()
        parent.wait()
        if parent.stdout is not None:
            parent.stdout.close()


def test_stage_stops_when_its_parent_is_killed(probe: Call, parents: list[subprocess.Popen[str]]) -> None:
    wait = probe("wait")
    parents.append(start_parent(wait))
    assert wait_until(lambda: (checkpoints(wait) / "starts").exists())
    stage = process_of(wait)
    assert alive(stage)
    parents[0].kill()
    assert wait_until(lambda: not alive(stage))
    assert (checkpoints(wait) / "saved").read_text() == "step 5"


def test_two_processes_with_the_same_key_build_it_once(probe: Call, parents: list[subprocess.Popen[str]]) -> None:
    write = probe("write", seconds=1.0)
    parents += [start_parent(write), start_parent(write)]
    answers = []
    for parent in parents:
        assert parent.stdout is not None
        answers.append(parent.stdout.read().strip())
    assert sorted(answers) == ["False", "True"]
    artifact = ArtifactStore(write.runtime.store).find(write.key)
    assert artifact is not None
    assert artifact.manifest().metrics["starts"] == 1


def test_waiting_process_builds_the_key_after_a_kill(probe: Call) -> None:
    write = probe("write", seconds=300)  # only in the first process, which the test kills
    crashes: list[StageCrashed] = []

    def first() -> None:
        try:
            build(write, Silent())
        except StageCrashed as error:
            crashes.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    assert wait_until(lambda: (checkpoints(write) / "starts").exists())
    listener = Listener()
    listener.log = lambda message: (  # type: ignore[method-assign]
        os.kill(process_of(write), signal.SIGKILL) if "waiting" in message else None
    )
    built = build(write, listener)
    thread.join()
    assert len(crashes) == 1
    assert not built.cached
    assert built.metrics["starts"] == 2


def test_cached_stage_starts_no_process_and_does_not_import_torch(probe: Call) -> None:
    write = probe("write")
    build(write, Silent())
    code = (
        PARENT + "import json; print(json.dumps([name for name in ('torch', 'transformers') if name in sys.modules]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], input=write.model_dump_json() + "\n", capture_output=True, text=True, check=True
    )
    cached, modules = answer.stdout.split("\n", 1)
    assert (cached, json.loads(modules)) == ("True", [])
