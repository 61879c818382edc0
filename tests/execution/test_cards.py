"""A stage in several processes, as torch's launcher starts them: its artifact, its faults, and what it does to keys."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from alignment_core.artifacts import Artifact, ArtifactStore
from alignment_core.config import PipelineConfig
from alignment_core.errors import ConfigError, StageCrashed
from alignment_core.execution.build import build, check_cards_of
from alignment_core.execution.stage import ON_ONE_CARD, ON_SEVERAL_CARDS, StageCall
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.progress import Silent
from alignment_core.ranks import cards
from alignment_core.registry import load_registry
from alignment_flows.tasks import StageRunner

MARK = "STAGE_OF_RANKS"


class Recorder(Silent):
    """Progress that records steps and lines, and does something after a step."""

    def __init__(self, after: int = -1, do: Callable[[], None] = lambda: None) -> None:
        self.after, self.do = after, do
        self.done: list[int] = []
        self.logs: list[str] = []

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        self.done.append(done)
        if done == self.after:
            self.do()

    def log(self, message: str) -> None:
        self.logs.append(message)


def plan(model: Path, folder: Path, gpus: int, device: str = "cpu") -> dict[str, StageCall]:
    rows = [{"prompt": f"Is {n} even?", "chosen": f"{n % 2 == 0}.", "rejected": f"{n} what?"} for n in range(24)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = {"batch_size": 6, "epochs": 3, "learning_rate": 1e-3}
    settings = {
        "model": {"base": str(model), "load_in": "fp32", "max_length": 128, "lora": {"rank": 2}},
        "data": {"sources": [{"path": str(folder / "pairs.jsonl")}], "held_out_fraction": 0.3},
        "sft": step,
        "optimizer": {"name": "dpo", **step},
        "evaluation": {"max_prompts": 4, "max_new_tokens": 6},
        "store": str(folder / f"on-{gpus}"),
        "device": device,
        "gpus": gpus,
        "checkpoint_seconds": 1e-3,
    }
    return plan_pipeline(PipelineConfig.model_validate(settings), load_registry()).calls()


def ranks_of(mark: str) -> list[int]:
    """Return the process ids of the ranks that were started with this mark, in the order in which they started."""
    found = []
    for process in psutil.process_iter(["cmdline", "create_time"]):
        try:
            marked = process.environ().get(MARK) == mark
        except psutil.Error:
            continue
        if marked and "--multiprocessing-fork" in process.info["cmdline"]:
            found.append((process.info["create_time"], process.pid))
    return [pid for _, pid in sorted(found)]


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that do not depend on time or memory."""
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def responses(folder: Path) -> list[str]:
    return [json.loads(line)["response"] for line in (folder / "responses.jsonl").read_text().splitlines()]


def history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_killed_rank_ends_the_stage_which_resumes_to_the_same_result(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    alone, shared = (plan(tiny_model, tmp_path, gpus) for gpus in (1, 2))
    assert [call.key for call in shared.values()] == [call.key for call in alone.values()]
    expected = {name: build(alone[name], Silent()) for name in ("ingest", "sft", "evaluate_sft")}
    build(shared["ingest"], Silent())

    killed: list[int] = []

    def kill() -> None:
        killed.extend(ranks_of(mark))
        os.kill(killed[1], signal.SIGKILL)

    with pytest.raises(StageCrashed, match="rank 1 of 2 was killed by SIGKILL") as crash:
        build(shared["sft"], Recorder(after=3, do=kill))
    assert crash.value.killed, "the flow retries what was killed"
    assert len(killed) == 2
    assert ranks_of(mark) == []

    recorder = Recorder()
    found = build(shared["sft"], recorder)
    assert any(line.startswith("resumed after step") for line in recorder.logs)
    assert recorder.done[0] > 3, "the step of the kill is not done again"
    files = {path.name for path in found.artifact.path.iterdir()}
    assert files == {path.name for path in expected["sft"].artifact.path.iterdir()}
    for ours, theirs in zip(history(found.artifact.path), history(expected["sft"].artifact.path), strict=True):
        assert ours == pytest.approx(theirs, rel=5e-6, abs=5e-6)

    measured = build(shared["evaluate_sft"], Silent())
    assert numbers(measured.metrics) == pytest.approx(numbers(expected["evaluate_sft"].metrics), rel=1e-5)
    assert responses(measured.artifact.path) == responses(expected["evaluate_sft"].artifact.path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_stop_reaches_every_rank_and_one_process_goes_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    shared = plan(tiny_model, tmp_path, 2)
    build(shared["ingest"], Silent())

    class Cancelled(Exception):
        pass

    def cancel() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        build(shared["sft"], Recorder(after=3, do=cancel))
    assert ranks_of(mark) == []
    call = shared["sft"].model_copy(update={"runtime": shared["sft"].runtime.model_copy(update={"gpus": 1})})
    recorder = Recorder()
    build(call, recorder)
    assert any(line.startswith("resumed after step") for line in recorder.logs)
    assert recorder.done[0] > 3


def test_more_cards_than_the_machine_has_are_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage that is in the store already needs none."""
    monkeypatch.setattr(cards, "visible_cards", lambda: ["0"])
    calls = plan(tiny_model, tmp_path, 2, device="auto")
    with pytest.raises(ConfigError, match="got 2, expected at most 1"), StageRunner().planned(calls.values()):
        pass
    monkeypatch.setattr(ArtifactStore, "find", lambda store, key: Artifact("sft", key, ""))
    check_cards_of(calls.values())
    check_cards_of(plan(tiny_model, tmp_path, 1, device="auto").values())
    check_cards_of(plan(tiny_model, tmp_path, 5).values())


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, "0 1 2 3"),
        ("0, 2", "0 2"),
        ("3", "3"),
        ("", ""),
        ("0,-1,1", "0"),
        ("1,4,2", "1"),
        ("MIG-1f,MIG-2f,GPU-8a", "MIG-1f MIG-2f GPU-8a"),
    ],
)
def test_cards_are_those_that_a_process_may_see(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, seen: str
) -> None:
    class Nvml:
        def nvmlInit_v2(self) -> int:
            return 0

        def nvmlDeviceGetCount_v2(self, count: Any) -> int:
            count._obj.value = 4
            return 0

    monkeypatch.setattr(cards.ctypes, "CDLL", lambda name: Nvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert cards.visible_cards() == seen.split()


@pytest.mark.parametrize(
    ("change", "message"), [({"device": "cuda:1"}, "is one card"), ({"isolation": "inline"}, "processes of their own")]
)
def test_settings_that_contradict_several_cards_are_refused(change: dict[str, str], message: str) -> None:
    settings = {"model": {"base": "x"}, "data": {"sources": [{"path": "x"}]}, "gpus": 2}
    with pytest.raises(ValueError, match=message):
        PipelineConfig.model_validate(settings | change)


def test_every_stage_says_how_many_cards_it_uses(tiny_model: Path, tmp_path: Path) -> None:
    stages = {call.stage: call.cards for call in plan(tiny_model, tmp_path, 3).values()}
    assert stages["sft"] == stages["optimize"] == stages["reference"] == stages["evaluate"] == 3
    assert stages["ingest"] == stages["head_to_head"] == 1
    assert not {*ON_SEVERAL_CARDS} & {*ON_ONE_CARD}
