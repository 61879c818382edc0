"""Runs of `align run` that are killed, and what is left of them.

A fault is a fresh copy of a store without one stage and those after it, a run on it, and what happens to the run in the
middle of that stage. Then the same command is given again until it succeeds.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from identical import digests
from served import ALIGN, PATIENCE, alive, kill, until

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import PipelineConfig
from alignment_core.config_file import check_config
from alignment_core.execution.stage import StageCall
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.processes.fork_client import SHARED
from alignment_core.registry import load_registry

HITS = 6
"""How often a run is started to meet a stage at work."""
FORK_SERVER = b"alignment_core.processes.fork_server"
FIRST_STAGE = b"alignment_core.execution.stage_process"
SAMPLING = {"responses_per_prompt": 2, "max_prompts": 4, "max_new_tokens": 6}
KINDS: Mapping[str, dict[str, Any]] = {
    "dpo": {"sample": SAMPLING, "rank": {"by": {"name": "wordlist"}}, "reward": {"batch_size": 6}},
    # Nothing is promoted: the plan of the next run would compare with the production model.
    "kto": {"gate": {"win_rate_over_sft": None, "win_rate_over_production": None}},
    "ppo": {},
}
"""Settings of the runs, which have every stage between them."""
PPO = {"rollouts": 3, "rollout_size": 4, "max_new_tokens": 6, "kl_ceiling": 1e6, "step_kl": None, "batch_size": 2}


def settings(kind: str, model: Path, folder: Path) -> dict[str, Any]:
    """Write the data of a small run. Return its settings, without the store."""
    rows = [{"prompt": f"Is {n} even?", "chosen": f"{n % 2 == 0}.", "rejected": f"{n} what?"} for n in range(24)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = {"batch_size": 6, "learning_rate": 1e-3}
    return {
        "name": f"fault-{kind}",
        "model": {"base": str(model), "load_in": "fp32", "max_length": 128, "lora": {"rank": 2, "dropout": 0.1}},
        "data": {
            "sources": [{"path": str(folder / "pairs.jsonl")}],
            "held_out_fraction": 0.3,
            "near_duplicates": None,
        },
        "sft": step,
        "optimizer": {"name": kind, **step, **(PPO if kind == "ppo" else {})},
        "evaluation": {"max_prompts": 4, "max_new_tokens": 6},
        "device": "cpu",
        "token_budget": 128,
        "checkpoint_seconds": 1e-3,
        **KINDS[kind],
    }


@dataclass(frozen=True)
class World:
    """An unbroken run in `folder/whole`."""

    folder: Path
    settings: Mapping[str, Any]

    def config(self, store: Path) -> Path:
        path = self.folder / f"{store.name}.yaml"
        path.write_text(json.dumps({**self.settings, "store": str(store)}))
        return path

    def calls(self, store: Path) -> dict[str, StageCall]:
        """Return the stages that the run builds in a store, in order."""
        config: PipelineConfig = check_config({**self.settings, "store": str(store)})
        return dict(plan_pipeline(config, load_registry()).calls())

    @property
    def whole(self) -> Path:
        return self.folder / "whole"


def make_world(kind: str, model: Path, folder: Path) -> World:
    """Run once without a fault."""
    folder.mkdir(parents=True, exist_ok=True)
    world = World(folder, settings(kind, model, folder))
    code, _, errors = finish(start(world.config(world.whole)))
    assert code == 0, errors
    return world


def start(config: Path, **variables: str) -> subprocess.Popen[str]:
    """Start `align run` in a session of its own, with a fork server of its own, so that its stages descend from it."""
    words = [*ALIGN, "run", str(config), "--json"]
    env = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", SHARED)} | variables
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=env, start_new_session=True)


def finish(run: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for the end. Return the exit code and what was written to stdout and stderr."""
    out, errors = run.communicate(timeout=PATIENCE)
    return run.returncode, out, errors


def without(world: World, stage: str, store: Path) -> dict[str, StageCall]:
    """Copy the whole store without a stage, and without those that read it. Return the stages by name."""
    shutil.copytree(world.whole, store, symlinks=True)
    calls = world.calls(store)
    removed = {calls[stage].key}
    for _ in calls:  # until nothing is added: the calls are few
        removed |= {call.key for call in calls.values() if removed & set(call.parents.values())}
    for key in removed:
        for path in store.glob(f"*/{key}"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if stage == "ingest":
        shutil.rmtree(store / "shard", ignore_errors=True)
    return calls


def processes(root: int) -> dict[int, int]:
    """Return every process that descends from one, with its parent."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    found: dict[int, int] = {}
    while more := {
        child: parent for child, parent in parents.items() if parent in {root, *found} and child not in found
    }:
        found |= more
    return found


def stages_of(run: int) -> list[int]:
    """Return the processes of stages: those that the fork server has forked, and the first, which is started afresh."""
    found = processes(run)
    return [
        child
        for child, parent in found.items()
        if (parent in found and _runs(parent, FORK_SERVER)) or _runs(child, FIRST_STAGE)
    ]


def _runs(process: int, module: bytes) -> bool:
    with suppress(OSError):
        return module in Path(f"/proc/{process}/cmdline").read_bytes()
    return False


def kill_once(world: World, victim: str, stage: str, rng: random.Random) -> str:
    """Kill a run in a stage at a random moment, run it again, and compare with the unbroken run. Return what was done.

    Args:
        world: the unbroken run.
        victim: `stage`, `flow` (the process of the command) or `both`.
        stage: the name of the stage in whose midst the kill falls.
        rng: chooses the moment.
    """
    store = world.folder / "broken"
    wait = rng.random() * seconds_of(world, stage)
    run, found, calls = at_work(world, store, stage, wait)
    others = list(processes(run.pid))
    kill(*([run.pid] if victim != "stage" else []), *(found if victim != "flow" else []))
    code, *_ = finish(run)
    until(lambda: not any(map(alive, others)))  # whatever the command has started ends with it
    runs = 1 if code == 0 else 1 + finish_whole(world, store)
    check_same(world, calls)
    left = left_overs(store)
    assert not left, left
    return f"{stage}: {victim} killed at most {wait:.2f} s after the stage had begun, done after {runs} runs"


def at_work(
    world: World, store: Path, stage: str, wait: float
) -> tuple[subprocess.Popen[str], list[int], dict[str, StageCall]]:
    """Start a run and wait until a stage has worked for some seconds. Return the run, its stages' processes and calls.

    If the stage is over by then, it starts again with half the wait.
    """
    for _ in range(HITS):
        shutil.rmtree(store, ignore_errors=True)
        calls = without(world, stage, store)
        run = start(world.config(store))
        building = store / ".building" / calls[stage].key
        # The first process waits for the imports of the fork server.
        while run.poll() is None and not (building.exists() and stages_of(run.pid)):
            time.sleep(0.02)
        time.sleep(wait)
        if found := stages_of(run.pid):
            return run, found, calls
        finish(run)
        wait /= 2
    raise AssertionError(f"{stage} was over before each kill")


def finish_whole(world: World, store: Path, runs: int = 3) -> int:
    """Run until a run succeeds. Return how many it took."""
    for attempt in range(1, runs + 1):
        code, _, errors = finish(start(world.config(store)))
        if code == 0:
            return attempt
    raise AssertionError(errors)


def check_same(world: World, calls: Mapping[str, StageCall]) -> None:
    """Check that every artifact equals that of the unbroken run."""
    whole = world.calls(world.whole)
    for name, call in calls.items():
        assert digests(call) == digests(whole[name]), name


def left_overs(store: Path) -> set[str]:
    """Return what the store holds besides artifacts, aliases and pages, after a run that was not killed."""
    kept = {".leases/.gate"}
    folders = [store / name for name in (".building", ".leases", ".locks", ".trash", "quarantined")]
    found = {path.relative_to(store).as_posix() for folder in folders for path in folder.glob("*")}
    return found - kept


def seconds_of(world: World, stage: str) -> float:
    """Return how long a stage of the unbroken run took."""
    artifact = ArtifactStore(world.whole).find(world.calls(world.whole)[stage].key)
    assert artifact is not None
    return artifact.manifest().seconds


def run_at_once(world: World, stage: str, count: int) -> dict[str, int]:
    """Start several runs on one store at once, which must succeed. Return how often each missing stage was built."""
    store = world.folder / "shared"
    shutil.rmtree(store, ignore_errors=True)
    calls = without(world, stage, store)
    config = world.config(store)
    ended = [finish(run) for run in [start(config) for _ in range(count)]]
    assert [code for code, *_ in ended] == [0] * count, [errors for _, _, errors in ended]
    check_same(world, calls)
    assert left_overs(store) == set()
    built: Counter[str] = Counter()
    for _, out, _ in ended:
        built.update({stage["name"]: not stage["cached"] for stage in json.loads(out)["stages"]})
    return dict(built)


def megabytes_of(folder: Path) -> float:
    """Return how much of a disk the files of a folder take, in pages."""
    pages = sum(-(-path.stat().st_size // 4096) or 1 for path in folder.rglob("*") if path.is_file())
    return pages * 4096 / 2**20
