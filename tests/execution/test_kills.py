"""Stages whose process is killed at random moments give the same results as an uninterrupted run.

The moments depend on the environment variable KILL_SEED (default 0) and are printed. Set it to try other moments or to
repeat a failure.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dies
import pytest
from identical import digests

from alignment_core.config import PipelineConfig
from alignment_core.errors import StageCrashed
from alignment_core.execution.build import build
from alignment_core.execution.stage import StageCall
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.progress import Silent
from alignment_core.registry import load_registry

SEED = os.environ.get("KILL_SEED", "0")
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "dpo": {},
    "kto": {},
    "ppo": {"rollouts": 4, "rollout_size": 4, "max_new_tokens": 6, "kl_ceiling": 1e6, "step_kl": None, "batch_size": 2},
}
STAGES = ("ingest", "sft", "sample", "reward", "reference", "reference of kto", "dpo", "kto", "ppo", "evaluate")
"""Each stage comes after the stages that it reads."""
TRAINED = ("sft", "reward", "dpo", "kto", "ppo")
MOMENTS = {
    "ingest": ("file", "publish"),
    "sample": ("token", "publish"),
    "reference": ("pass", "publish"),
    "reference of kto": ("pass", "publish"),
    "evaluate": ("token", "pass", "publish"),
    "ppo": ("token", "pass", "checkpoint", "publish"),
}
"""Kinds of moments at which a stage is killed. Stages that are not listed use pass, checkpoint and publish."""


class Recorder(Silent):
    """Progress that records the last step, whether the stage resumed from a checkpoint, and whether it was cached."""

    def __init__(self) -> None:
        self.done, self.resumed, self.cached = 0, False, False

    def log(self, message: str) -> None:
        self.resumed |= message.startswith("resumed after step")

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        self.done = done


@dataclass
class World:
    """The stages of a run in two stores: one without kills (`whole`) and one where stages are killed (`broken`)."""

    whole: Mapping[str, StageCall]
    broken: Mapping[str, StageCall]
    folder: Path
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def unbroken(self, name: str) -> dict[str, int]:
        """Build the stage and its parents without kills and return the stage's number of events of each kind."""
        for needed in (*needs(self.whole, name), name):
            if needed not in self.counts:
                self.build(self.whole[needed])
                self.counts[needed] = json.loads((self.folder / "counts").read_text())
        return self.counts[name]

    def prepare(self, name: str) -> None:
        """Build the stage's parents in the store with kills."""
        for needed in needs(self.broken, name):
            self.build(self.broken[needed])

    def build(self, call: StageCall) -> Recorder:
        """Build a stage without a kill."""
        recorder = Recorder()
        dies.order(self.folder / "order", self.folder / "counts", call.key)
        recorder.cached = build(call, recorder).cached
        return recorder

    def kill(self, call: StageCall, kind: str, number: int, signum: signal.Signals = signal.SIGKILL) -> Recorder:
        """Build a stage whose process is ended by a signal."""
        recorder = Recorder()
        message = "killed by SIGKILL" if signum == signal.SIGKILL else "asked to stop"
        dies.order(self.folder / "order", self.folder / "counts", call.key, kind=kind, number=number, signum=signum)
        with pytest.raises(StageCrashed, match=message):
            build(call, recorder)
        return recorder


def needs(calls: Mapping[str, StageCall], name: str) -> list[str]:
    """Return the names of the stages that a stage reads, directly or indirectly."""
    by_key = {call.key: name for name, call in calls.items()}
    wanted, found = [calls[name]], set()
    while wanted:
        parents = {by_key[key] for key in wanted.pop().parents.values()}
        wanted += [calls[parent] for parent in parents - found]
        found |= parents
    return [stage for stage in STAGES if stage in found]


def plan(model: Path, folder: Path, store: str, optimizer: str, **more: Any) -> dict[str, StageCall]:
    """Return the stages of a small run with this optimizer and these additional settings, by name."""
    step = {"batch_size": 6, "epochs": 2, "learning_rate": 1e-3}
    config = PipelineConfig.model_validate(
        {
            "model": {"base": str(model), "load_in": "fp32", "max_length": 128, "lora": {"rank": 2, "dropout": 0.1}},
            "data": {
                "sources": [{"path": str(folder / "pairs.jsonl")}],
                "held_out_fraction": 0.3,
                "near_duplicates": None,
            },
            "sft": step,
            "reward": step,
            "optimizer": {"name": optimizer, **step, **OPTIMIZERS[optimizer]},
            "evaluation": {"max_prompts": 4, "max_new_tokens": 6},
            "store": str(folder / store),
            "device": "cpu",
            # Small enough for several passes in each training step and in stages that only read.
            "token_budget": 128,
            # Write a checkpoint after every step, so that a killed stage can resume.
            "checkpoint_seconds": 1e-3,
            **more,
        }
    )
    return plan_pipeline(config, load_registry()).calls()


def stages(model: Path, folder: Path, store: str) -> dict[str, StageCall]:
    """Return every stage once, with each optimizer under its name. `evaluate` measures the policy of PPO."""
    plans = {name: plan(model, folder, store, name) for name in OPTIMIZERS}
    sampling = {"responses_per_prompt": 2, "max_prompts": 6, "max_new_tokens": 6}
    sample = plan(model, folder, store, "dpo", sample=sampling, rank={"by": {"name": "wordlist"}})["sample"]
    found = {name: plans["ppo"][name] for name in ("ingest", "sft", "reward", "evaluate")}
    found |= {"sample": sample, "reference": plans["dpo"]["reference"], "reference of kto": plans["kto"]["reference"]}
    return found | {name: calls["optimize"] for name, calls in plans.items()}


@pytest.fixture(scope="module")
def world(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("kills")
    rows = [{"prompt": f"Is {n} even?", "chosen": f"{n % 2 == 0}.", "rejected": f"{n} what?"} for n in range(24)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(dies.SITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder / "site"), prepend=os.pathsep)
        patch.setenv(dies.VARIABLE, str(folder / "order"))
        yield World(stages(tiny_model, folder, "whole"), stages(tiny_model, folder, "broken"), folder)


def checkpoints(call: StageCall) -> list[Path]:
    """Return the checkpoints that a killed build left."""
    return list((call.runtime.store / ".building" / call.key / "checkpoints").glob("checkpoint-*"))


def forget(store: Path, call: StageCall) -> None:
    """Remove a stage's artifact, its unfinished build and its intermediate files from a store."""
    shards = store.glob("shard/*") if call.stage == "ingest" else ()
    for made in (*store.glob(f"*/{call.key}"), *shards):
        shutil.rmtree(made) if made.is_dir() else made.unlink()


def check_kills(world: World, name: str, kills: int) -> None:
    """Check that a stage killed `kills` times gives the same result as an uninterrupted one."""
    counts, call = world.unbroken(name), world.broken[name]
    world.prepare(name)
    forget(world.folder / "broken", call)  # another test may have built it
    rng = random.Random(f"{SEED} {name}")
    kinds = MOMENTS.get(name, ("pass", "checkpoint", "publish"))
    moments = []
    for attempt in range(kills):
        # The last kill may happen during publishing. Earlier attempts do at most their share of the work, so that each
        # attempt has work left.
        kind = kinds[-1] if attempt == kills - 1 else rng.choice(kinds[:-1])
        number = rng.randint(1, max(1, counts[kind] if kind == "publish" else counts[kind] // kills))
        moments.append(f"{kind} {number} of {counts[kind]}")
        print(f"{name}: killed at {moments[-1]}", flush=True)
        before = checkpoints(call)
        recorder = world.kill(call, kind, number)
        assert not recorder.resumed or before
    last = world.build(call)
    # A stage killed after the rename that publishes its artifact has nothing left to do.
    assert name not in TRAINED or last.resumed or last.cached
    assert call.key == world.whole[name].key
    assert digests(call) == digests(world.whole[name]), moments


@pytest.mark.ci
@pytest.mark.timeout(1200)
def test_three_kills_do_not_change_the_result(world: World) -> None:
    """Two kills happen in a forward pass or during a checkpoint, and the last one while the artifact is published."""
    check_kills(world, "sft", kills=3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", STAGES)
def test_kills_of_every_stage_do_not_change_the_result(world: World, name: str) -> None:
    check_kills(world, name, kills=3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "pass") for name in (*TRAINED, "reference")), *((n, "token") for n in ("sample", "ppo", "evaluate"))],
)
def test_a_stop_is_prompt_writes_a_checkpoint_and_does_not_change_the_result(
    world: World, name: str, kind: str
) -> None:
    """Send SIGTERM during a step, a rollout or a response, when no periodic checkpoint is due."""
    counts, again = world.unbroken(name), world.folder / f"stopped-{name}-{kind}"
    world.prepare(name)
    shutil.copytree(world.folder / "broken", again)
    forget(again, world.broken[name])
    runtime = world.broken[name].runtime.model_copy(update={"store": again, "checkpoint_seconds": 1e6})
    call = world.broken[name].model_copy(update={"runtime": runtime})
    number = random.Random(f"{SEED} {name} {kind}").randint(counts[kind] // 2, counts[kind] - 1)
    print(f"{name}: stopped at {kind} {number} of {counts[kind]}", flush=True)
    recorder = world.kill(call, kind, number, signal.SIGTERM)
    sent_at = (world.folder / "counts.sent").stat().st_mtime
    assert time.time() - sent_at < 20
    saved = [json.loads((path / "state.json").read_text())["step"] for path in checkpoints(call)]
    assert saved == ([recorder.done] if name in TRAINED else [])
    last = world.build(call)
    assert last.resumed == (name in TRAINED)
    assert digests(call) == digests(world.whole[name])
