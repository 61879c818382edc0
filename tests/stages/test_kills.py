"""Stages whose process is killed at random moments, and what they end as, beside an unbroken run."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import PipelineConfig
from alignment_core.errors import StageCrashed
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_core.stages.base import StageCall
from alignment_core.stages.build import build
from alignment_core.stages.plan import make_plan

Digests = dict[str, str]


class Killer(Silent):
    """Sends a signal to the stage's process a moment after it reported its `after`-th step of this life."""

    def __init__(self, after: int, delay: float, what: signal.Signals) -> None:
        self.left, self.delay, self.what = after, delay, what
        self.sent_at: float | None = None
        self.resumed = False

    def log(self, message: str) -> None:
        self.resumed |= message.startswith("resumed after step")

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        self.left -= 1
        if self.left == 0:
            time.sleep(self.delay)
            self.sent_at = time.monotonic()
            for child in children():
                os.kill(child, self.what)


def children() -> list[int]:
    """Processes that this one started."""
    return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


def calls(model: Path, folder: Path, store: str, *, epochs: int, checkpoint_seconds: float) -> dict[str, StageCall]:
    """The stages of a small PPO run, by name."""
    data = folder / "pairs.jsonl"
    rows = [{"prompt": f"Is {n} even?", "chosen": f"{n % 2 == 0}.", "rejected": f"{n} what?"} for n in range(24)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = {"batch_size": 6, "epochs": epochs, "learning_rate": 1e-3}
    rollouts = {"rollouts": 2 * epochs, "rollout_size": 4, "max_new_tokens": 6, "kl_ceiling": 1e6, "step_kl": None}
    config = PipelineConfig.model_validate(
        {
            "model": {"base": str(model), "load_in": "fp32", "max_length": 128, "lora": {"rank": 2, "dropout": 0.1}},
            "data": {"sources": [{"path": str(data)}], "held_out_fraction": 0.2, "near_duplicates": None},
            "sft": step,
            "reward": step,
            "optimizer": {"name": "ppo", **step, "epochs": 1, "batch_size": 2, **rollouts},
            "store": str(folder / store),
            "device": "cpu",
            "checkpoint_seconds": checkpoint_seconds,
        }
    )
    plan = make_plan(config, load_registry()).calls()
    return {name: plan[name] for name in ("ingest", "sft", "reward", "optimize")}


def digests(call: StageCall) -> Digests:
    """Every file of the stage's artifact: weights, settings and the history of its steps."""
    artifact = ArtifactStore(call.runtime.store).find(call.key)
    assert artifact is not None
    return {name: record.sha256 for name, record in artifact.manifest().files.items()}


def checkpoints(call: StageCall) -> list[Path]:
    """What a killed build left to go on from."""
    return list((call.runtime.store / ".building" / call.key / "checkpoints").glob("checkpoint-*"))


def interrupted(call: StageCall, what: signal.Signals, rng: random.Random) -> Killer:
    """One life of a stage that ends by a signal."""
    killer = Killer(rng.randint(1, 3), rng.uniform(0, 0.05), what)
    with pytest.raises(StageCrashed):
        build(call, killer)
    assert killer.sent_at is not None
    return killer


def check_killed_run(model: Path, folder: Path, *, epochs: int, kills: int) -> None:
    """Each training stage dies `kills` times, and ends as the one that was left alone."""
    rng = random.Random(epochs)
    unbroken = calls(model, folder, "unbroken", epochs=epochs, checkpoint_seconds=1e-3)
    broken = calls(model, folder, "broken", epochs=epochs, checkpoint_seconds=1e-3)
    for name, call in broken.items():
        build(unbroken[name], Silent())
        if name != "ingest":
            for _ in range(kills):
                left_behind = checkpoints(call)
                assert interrupted(call, signal.SIGKILL, rng).resumed == bool(left_behind)
        build(call, Silent())
        assert call.key == unbroken[name].key
        found = digests(call)
        assert found == digests(unbroken[name]), name
        assert name == "ingest" or {"adapter_model.safetensors", "metrics.jsonl"} <= found.keys()


@pytest.mark.ci
def test_three_kills_change_nothing(tiny_model: Path, tmp_path: Path) -> None:
    check_killed_run(tiny_model, tmp_path, epochs=4, kills=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_one_kills_change_nothing(tiny_model: Path, tmp_path: Path) -> None:
    check_killed_run(tiny_model, tmp_path, epochs=12, kills=7)


@pytest.mark.ci
def test_a_stop_writes_a_checkpoint_in_time_and_changes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    """No checkpoint is due by the clock, so that all that is kept was written on the stop."""
    unbroken = calls(tiny_model, tmp_path, "unbroken", epochs=20, checkpoint_seconds=1e6)
    stopped = calls(tiny_model, tmp_path, "stopped", epochs=20, checkpoint_seconds=1e6)
    for name in ("ingest", "sft"):
        build(unbroken[name], Silent())
    build(stopped["ingest"], Silent())
    killer = interrupted(stopped["sft"], signal.SIGTERM, random.Random(0))
    assert killer.sent_at is not None
    assert time.monotonic() - killer.sent_at < 20
    assert len(checkpoints(stopped["sft"])) == 1
    again = Killer(0, 0, signal.SIGTERM)
    build(stopped["sft"], again)
    assert again.resumed
    assert digests(stopped["sft"]) == digests(unbroken["sft"])
