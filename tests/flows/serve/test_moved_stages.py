"""Stages that run in another work pool, on a machine with a store of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from brake import Brake
from far_worker import Far, artifacts, far_worker
from served import ALIGN, Served, alive, kill, processes_of, until

pytestmark = pytest.mark.timeout(3600)

STEP = {"batch_size": 4, "learning_rate": 1e-3}


@pytest.mark.ci
def test_stages_run_in_another_pool_with_a_store_of_its_own(
    served: Served, write: Callable[..., Path], tmp_path: Path
) -> None:
    where = {"ingest": "far", "optimize": "far"}
    config = moved_run(write, tmp_path, name="moved", where=where, isolation="inline")
    refused = served.run(ALIGN, "run", config)
    assert refused.returncode == 2
    assert "has no such work pool. got far" in refused.stderr.replace("\n", " ")
    assert not list((served.folder / "moved-store").glob("[a-z]*/*"))

    with far_worker(served, tmp_path / "machine", "far") as far:
        done = served.run(ALIGN, "run", config, "--json")
        assert done.returncode == 0, done.stderr + (tmp_path / "machine" / "worker.log").read_text()
        here, there = artifacts(served.folder / "moved-store"), far.artifacts("moved-store")
        assert {name.partition("/")[0] for name in here} == {
            "ingest", "sft", "reference", "optimize", "evaluate", "head_to_head",
        }  # fmt: skip
        assert {name.partition("/")[0] for name in there} == {"ingest", "sft", "reference", "optimize"}
        assert there < here
        runs = far.runs()
        assert [run["name"].partition(" · ")[0] for run in runs] == ["ingest", "dpo"]
        assert all(run["state"]["name"] == "Completed" and run["parent_task_run_id"] for run in runs)
        again = served.run(ALIGN, "run", config, "--json")
        assert again.returncode == 0, again.stderr
        assert all(stage["cached"] for stage in json.loads(again.stdout)["stages"])
        assert len(far.runs()) == 2


@pytest.mark.slow
def test_cancelling_the_run_cancels_its_stage_elsewhere_which_resumes(
    served: Served, write: Callable[..., Path], tmp_path: Path, brake: Brake
) -> None:
    deployment = served.deploy(moved_run(write, tmp_path, name="moved-cancelled", where={"sft": "braked"}))
    with far_worker(served, tmp_path / "machine", "braked", brake.job_variables["env"]) as far:
        brake.hold("sft")
        run = served.start(deployment)
        (child,) = wait_for_runs(far, 1)
        stage = brake.held(served, child["id"])
        served.post(f"flow_runs/{run}/set_state", state={"type": "CANCELLING"})
        assert served.ended(run)["type"] == "CANCELLED", served.state_and_log(run)
        assert served.ended(child["id"])["type"] == "CANCELLED", served.state_and_log(child["id"])
        until(lambda: not alive(stage))
        brake.release()
        again = served.start(deployment)
        assert served.ended(again)["type"] == "COMPLETED", served.state_and_log(again)
        (_, resumed) = far.runs()
        assert "resumed after step" in served.log(resumed["id"])


@pytest.mark.slow
def test_killed_run_of_a_stage_is_started_again_and_a_killed_flow_builds_nothing_twice(
    served: Served, write: Callable[..., Path], tmp_path: Path, brake: Brake
) -> None:
    deployment = served.deploy(moved_run(write, tmp_path, name="moved-killed", where={"sft": "killed"}))
    with far_worker(served, tmp_path / "machine", "killed", brake.job_variables["env"]) as far:
        brake.hold("sft")
        run = served.start(deployment)
        (child,) = wait_for_runs(far, 1)
        brake.held(served, child["id"])
        kill(*processes_of(child["id"]))
        assert served.ended(child["id"])["type"] == "CRASHED"
        _, second = wait_for_runs(far, 2)
        until(lambda: served.state(second["id"])["type"] == "RUNNING")
        kill(*processes_of(run))
        assert served.ended(run)["type"] == "CRASHED"
        third = served.start(deployment)
        brake.release()
        assert served.ended(third)["type"] == "COMPLETED", served.state_and_log(third)
        assert served.ended(second["id"])["type"] == "COMPLETED", "it goes on without the flow that started it"
        assert served.tasks(third)["sft"]["state"]["type"] == "COMPLETED"
        log = served.log(far.runs()[-1]["id"])
        assert "found in the store" in log, "the third run of the stage found what the second one built"
        assert len(far.runs()) == 3


@pytest.mark.slow
def test_error_of_a_stage_elsewhere_is_the_error_of_the_run(
    served: Served, write: Callable[..., Path], tmp_path: Path
) -> None:
    with far_worker(served, tmp_path / "machine", "wrong") as far:
        config = moved_run(write, tmp_path, name="moved-wrong", where={"optimize": "wrong"})
        failed = served.run(ALIGN, "run", config, "--set", "optimizer.learning_rate=1e9")
        (child,) = far.runs()
        message = served.state(child["id"])["message"]
        assert (failed.returncode, served.state(child["id"])["type"]) == (2, "FAILED"), failed.stderr
        assert message in failed.stderr
        # A kind of stage that is not in `where` runs in place.
        done = served.run(ALIGN, "run", config, "--set", "where={}")
        assert done.returncode == 0, done.stderr
        assert len(far.runs()) == 1


@pytest.mark.slow
def test_optimizers_of_a_comparison_run_at_once_on_several_machines(
    served: Served, write: Callable[..., Path], tmp_path: Path
) -> None:
    config = moved_run(write, tmp_path, name="moved-compared", where={"optimize": "many", "reference": "many"})
    with (
        far_worker(served, tmp_path / "one", "many") as one,
        far_worker(served, tmp_path / "two", "many"),
    ):
        done = served.run(ALIGN, "compare", config, "--optimizers", "dpo,kto", "--out", tmp_path / "report")
        assert done.returncode == 0, done.stderr
        runs = {run["name"].partition(" · ")[0]: run for run in one.runs()}
        assert {"dpo", "kto"} <= runs.keys()
        assert runs["dpo"]["start_time"] < runs["kto"]["end_time"]
        assert runs["kto"]["start_time"] < runs["dpo"]["end_time"], "the second one starts before the first one ends"


def moved_run(write: Callable[..., Path], folder: Path, **changes: Any) -> Path:
    """Write a small run that shares its artifacts with the other machine."""
    (folder / "remote").mkdir(exist_ok=True)
    return write(store=f"{changes['name']}-store", remote=f"file://{folder / 'remote'}", sft=STEP, **changes)


def wait_for_runs(far: Far, count: int) -> list[dict[str, Any]]:
    """Wait until the pool has had so many runs of stages, and return them."""
    until(lambda: len(far.runs()) >= count, lambda: (far.folder / "worker.log").read_text())
    return far.runs()
