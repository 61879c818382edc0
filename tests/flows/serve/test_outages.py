"""Outages in the middle of a stage: of the server, of the worker, and of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import httpx
import psutil
import pytest
from brake import Brake
from served import PREFECT, Served, alive, engine_of, kill, processes_of, until

from alignment_flows.serve.deployments.automations import ZOMBIE_SECONDS, ZOMBIES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SHORT_SECONDS = 75.0
"""Prefect's shortest heartbeat interval is 30 s, and two heartbeats may be missed."""
RUNS = count(1)


@pytest.fixture
def deployment(served: Served, write: Callable[..., Path], shared_store: Path) -> str:
    """Deploy settings of which only the optimizer and the stages after it are not cached. Every service is running."""
    if not all(map(alive, served.services().values())):  # a test before this one failed
        up_again(served)
    optimizer = {"name": "dpo", "beta": 0.1 + next(RUNS) / 1000, "batch_size": 8, "learning_rate": 1e-3}
    return served.deploy(write(store=str(shared_store), optimizer=optimizer))


@pytest.fixture
def short_zombie_timeout(served: Served, deployment: str) -> Iterator[None]:
    """Shorten the timeout of the shipped automation, because ten minutes are too long for a test."""
    shipped = served.automation(ZOMBIES)
    assert shipped["enabled"] is True
    assert shipped["trigger"]["within"] == ZOMBIE_SECONDS == 600
    written = {key: shipped[key] for key in ("name", "description", "enabled", "trigger", "actions")}
    served.put(f"automations/{shipped['id']}", **written | {"trigger": {**shipped["trigger"], "within": SHORT_SECONDS}})
    yield
    served.put(f"automations/{shipped['id']}", **written)


@pytest.fixture
def run(served: Served, brake: Brake, deployment: str) -> str:
    """Start a run whose optimizer is held in the middle of its training."""
    brake.hold("dpo")
    run = served.start(deployment, job_variables=brake.job_variables)
    brake.held(served, run)
    return run


def up_again(served: Served) -> None:
    """Start the missing services with `align up`, as a user does after a crash."""
    started = served.align("up")
    assert started.returncode == 0, started.stderr


def start_count(served: Served, run: str) -> int:
    """Return how often the run has started."""
    return sum(state["type"] == "RUNNING" for state in served.states(run))


def retried(served: Served, run: str) -> dict[str, str]:
    """Retry the run, which must succeed. Return the final states of its stages."""
    before = start_count(served, run)
    again = served.run(PREFECT, "flow-run", "retry", run)
    assert again.returncode == 0, again.stdout + again.stderr
    # A busy worker reports the end of the killed process only now, so the run may be shown as crashed once more.
    until(lambda: start_count(served, run) > before, lambda: served.state_and_log(run))
    assert served.ended(run)["type"] == "COMPLETED", served.state_and_log(run)
    return {stage: task["state"]["name"] for stage, task in served.tasks(run).items()}


def test_requests_wait_for_a_database_that_gets_no_processor(served: Served) -> None:
    """Nothing of PostgreSQL runs for 15 s. More requests come in than the server has connections open."""
    database = psutil.Process(served.services()["database"])
    stopped = [database, *database.children(recursive=True)]
    with ThreadPoolExecutor(12) as users:
        for process in stopped:
            process.suspend()
        try:
            asked = [users.submit(httpx.get, f"{served.url}/api/admin/version", timeout=600)]
            runs = f"{served.url}/api/flow_runs/filter"
            asked += [users.submit(httpx.post, runs, json={}, timeout=600) for _ in range(11)]
            time.sleep(15)
        finally:
            for process in stopped:
                process.resume()
        assert [answer.result().status_code for answer in asked] == [200] * 12


def test_run_survives_a_restart_of_the_server(served: Served, brake: Brake, run: str) -> None:
    engine = engine_of(run)
    kill(served.services()["server"])
    brake.release()  # the stage ends while the server is down
    up_again(served)
    assert served.ended(run)["type"] == "COMPLETED", served.state_and_log(run)
    starts = [state["name"] for state in served.states(run) if state["type"] == "RUNNING"]
    assert starts == ["Running"], "the same process continued"
    until(lambda: engine not in processes_of(run))


def test_run_crashed_by_a_long_server_outage_is_retried_without_losses(served: Served, brake: Brake, run: str) -> None:
    kill(served.services()["server"])
    brake.release()
    until(lambda: not processes_of(run))
    # `align up` does not change the automation. If it did, Prefect would forget this run.
    up_again(served)
    assert served.ended(run)["type"] == "CRASHED", served.state_and_log(run)
    states = retried(served, run)
    assert [states[stage] for stage in ("ingest", "sft", "reference", "dpo")] == ["Cached"] * 4


@pytest.mark.usefixtures("short_zombie_timeout")
def test_run_of_a_dead_machine_is_marked_as_crashed(served: Served, brake: Brake, run: str) -> None:
    kill(served.services()["gpu"], *processes_of(run))
    assert served.state(run)["type"] == "RUNNING"
    ended = served.ended(run)
    assert (ended["type"], ended["message"][:12]) == ("CRASHED", "no heartbeat"), ended
    brake.release()
    up_again(served)
    states = retried(served, run)
    assert [states[stage] for stage in ("ingest", "sft", "reference", "dpo")] == [*["Cached"] * 3, "Completed"]


def test_run_survives_the_kill_of_its_worker(served: Served, brake: Brake, run: str) -> None:
    kill(served.services()["gpu"])
    brake.release()
    assert served.ended(run)["type"] == "COMPLETED", served.state_and_log(run)
    up_again(served)


def test_killed_run_stops_its_stage_and_is_marked_as_crashed(served: Served, brake: Brake, run: str) -> None:
    kill(engine_of(run))
    until(lambda: not processes_of(run), lambda: processes_of(run))
    assert served.ended(run)["type"] == "CRASHED", served.state_and_log(run)
    brake.release()
    states = retried(served, run)
    assert [states[stage] for stage in ("ingest", "sft", "reference", "dpo")] == [*["Cached"] * 3, "Completed"]
    log = served.log(run, task_run_id={"any_": [served.tasks(run)["dpo"]["id"]]})
    assert "resumed after step" in log, "the stage must write a checkpoint when its parent is gone"
