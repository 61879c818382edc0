"""Stages whose process is killed at random moments, and what they end as, beside an unbroken run.

The moments follow from KILL_SEED (0 unless set) and are printed: another seed tries others, and any can be had again.
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

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import PipelineConfig
from alignment_core.errors import StageCrashed
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_core.stages.base import StageCall
from alignment_core.stages.build import build
from alignment_core.stages.plan import make_plan

SEED = os.environ.get("KILL_SEED", "0")
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "dpo": {},
    "kto": {},
    "ppo": {"rollouts": 4, "rollout_size": 4, "max_new_tokens": 6, "kl_ceiling": 1e6, "step_kl": None, "batch_size": 2},
}
STAGES = ("ingest", "sft", "sample", "reward", "reference", "reference of kto", "dpo", "kto", "ppo", "evaluate")
"""In the order in which they read each other."""
TRAINED = ("sft", "reward", "dpo", "kto", "ppo")
MOMENTS = {
    "ingest": ("file", "publish"),
    "sample": ("token", "publish"),
    "reference": ("pass", "publish"),
    "reference of kto": ("pass", "publish"),
    "evaluate": ("token", "pass", "publish"),
    "ppo": ("token", "pass", "checkpoint", "publish"),
}
"""Kinds of moment that a stage dies at; those that only train: pass, checkpoint and publish."""


class Heard(Silent):
    """Progress that remembers the last step, and whether the stage went on from a checkpoint or was there already."""

    def __init__(self) -> None:
        self.done, self.resumed, self.cached = 0, False, False

    def log(self, message: str) -> None:
        self.resumed |= message.startswith("resumed after step")

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        self.done = done


@dataclass
class World:
    """The stages of a run in two stores: one where nothing breaks, and one where everything does."""

    whole: Mapping[str, StageCall]
    broken: Mapping[str, StageCall]
    folder: Path
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def unbroken(self, name: str) -> dict[str, int]:
        """Build the stage and what it reads where nothing breaks; how many events of each kind that takes."""
        for needed in (*needs(self.whole, name), name):
            if needed not in self.counts:
                self.live(self.whole[needed])
                self.counts[needed] = json.loads((self.folder / "counts").read_text())
        return self.counts[name]

    def prepare(self, name: str) -> None:
        """Have what the stage reads in the store where things break."""
        for needed in needs(self.broken, name):
            self.live(self.broken[needed])

    def live(self, call: StageCall) -> Heard:
        """One life of a stage's process."""
        heard = Heard()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(dies.VARIABLE, dies.order(self.folder / "counts", call.key))
            heard.cached = build(call, heard).cached
        return heard

    def die(self, call: StageCall, kind: str, number: int, signum: signal.Signals = signal.SIGKILL) -> Heard:
        """One life of a stage's process that ends by a signal."""
        heard = Heard()
        words = "killed by SIGKILL" if signum == signal.SIGKILL else "asked to stop"
        with pytest.MonkeyPatch.context() as patch:
            order = dies.order(self.folder / "counts", call.key, kind=kind, number=number, signum=signum)
            patch.setenv(dies.VARIABLE, order)
            with pytest.raises(StageCrashed, match=words):
                build(call, heard)
        return heard


def needs(calls: Mapping[str, StageCall], name: str) -> list[str]:
    """Names of the stages that a stage reads, directly or not."""
    by_key = {call.key: name for name, call in calls.items()}
    wanted, found = [calls[name]], set()
    while wanted:
        parents = {by_key[key] for key in wanted.pop().parents.values()}
        wanted += [calls[parent] for parent in parents - found]
        found |= parents
    return [stage for stage in STAGES if stage in found]


def plan(model: Path, folder: Path, store: str, optimizer: str, **more: Any) -> dict[str, StageCall]:
    """The stages of a small run with this optimizer and more settings, by name."""
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
            # Several passes in a step and in a reading stage.
            "token_budget": 128,
            # After every step: a killed stage then has something to go on from.
            "checkpoint_seconds": 1e-3,
            **more,
        }
    )
    return make_plan(config, load_registry()).calls()


def stages(model: Path, folder: Path, store: str) -> dict[str, StageCall]:
    """Every stage once, each optimizer by its name; what is evaluated is PPO's policy."""
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
        yield World(stages(tiny_model, folder, "whole"), stages(tiny_model, folder, "broken"), folder)


def digests(call: StageCall) -> dict[str, Any]:
    """Every file of the stage's artifact (weights, settings, the history of its steps) and all that it measured."""
    artifact = ArtifactStore(call.runtime.store).find(call.key)
    assert artifact is not None
    manifest = artifact.manifest()
    found: dict[str, Any] = {name: record.sha256 for name, record in manifest.files.items()}
    if call.stage == "ingest":
        # The report tells, rightly, that files which were read before the kill were not read again.
        report = json.loads((artifact.path / "report.json").read_text())
        for file in report["files"]:
            del file["reused"]
        found |= {"report.json": report, "report.md": None, "report.html": None}
    return found | {"metrics": manifest.metrics}


def checkpoints(call: StageCall) -> list[Path]:
    """What a killed build left to go on from."""
    return list((call.runtime.store / ".building" / call.key / "checkpoints").glob("checkpoint-*"))


def forget(store: Path, call: StageCall) -> None:
    """Take a stage's artifact out of a store, what a kill left of its building, and what it made on its way."""
    shards = store.glob("shard/*") if call.stage == "ingest" else ()
    for made in (*store.glob(f"*/{call.key}"), *shards):
        shutil.rmtree(made) if made.is_dir() else made.unlink()


def check_kills(world: World, name: str, kills: int) -> None:
    """A stage that dies so many times ends as the one that was left alone."""
    counts, call = world.unbroken(name), world.broken[name]
    world.prepare(name)
    forget(world.folder / "broken", call)  # what another test has built
    rng = random.Random(f"{SEED} {name}")
    kinds = MOMENTS.get(name, ("pass", "checkpoint", "publish"))
    moments = []
    for life in range(kills):
        # Publishing comes last; before it no life does more than its share, so that there is work for every other.
        kind = kinds[-1] if life == kills - 1 else rng.choice(kinds[:-1])
        number = rng.randint(1, max(1, counts[kind] if kind == "publish" else counts[kind] // kills))
        moments.append(f"{kind} {number} of {counts[kind]}")
        print(f"{name}: killed at {moments[-1]}", flush=True)
        before = checkpoints(call)
        heard = world.die(call, kind, number)
        assert not heard.resumed or before
    last = world.live(call)
    # What is killed after the rename that publishes it has nothing left to do.
    assert name not in TRAINED or last.resumed or last.cached
    assert call.key == world.whole[name].key
    assert digests(call) == digests(world.whole[name]), moments


@pytest.mark.ci
@pytest.mark.timeout(1200)
def test_three_kills_change_nothing(world: World) -> None:
    """In a forward pass or while a checkpoint is written, and while the result is published."""
    check_kills(world, "sft", kills=3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", STAGES)
def test_thirty_kills_change_nothing(world: World, name: str) -> None:
    check_kills(world, name, kills=3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "pass") for name in (*TRAINED, "reference")), *((n, "token") for n in ("sample", "ppo", "evaluate"))],
)
def test_a_stop_comes_in_time_writes_a_checkpoint_and_changes_nothing(world: World, name: str, kind: str) -> None:
    """SIGTERM in the middle of a step, a rollout or a response; no checkpoint is due by the clock."""
    counts, again = world.unbroken(name), world.folder / f"stopped-{name}-{kind}"
    world.prepare(name)
    shutil.copytree(world.folder / "broken", again)
    forget(again, world.broken[name])
    runtime = world.broken[name].runtime.model_copy(update={"store": again, "checkpoint_seconds": 1e6})
    call = world.broken[name].model_copy(update={"runtime": runtime})
    number = random.Random(f"{SEED} {name} {kind}").randint(counts[kind] // 2, counts[kind] - 1)
    print(f"{name}: stopped at {kind} {number} of {counts[kind]}", flush=True)
    heard = world.die(call, kind, number, signal.SIGTERM)
    sent_at = (world.folder / "counts.sent").stat().st_mtime
    assert time.time() - sent_at < 20
    saved = [json.loads((path / "snapshot.json").read_text())["step"] for path in checkpoints(call)]
    assert saved == ([heard.done] if name in TRAINED else [])
    last = world.live(call)
    assert last.resumed == (name in TRAINED)
    assert digests(call) == digests(world.whole[name])
