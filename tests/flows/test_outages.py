"""What a run survives: its server, its worker or its machine goes away in the middle of a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from brake import Brake
from served import PREFECT, Served, alive, engine_of, kill, processes_of, until

from alignment_flows.deployments import ZOMBIE_SECONDS, ZOMBIES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SHORT_SECONDS = 75.0
"""Prefect's shortest heartbeat is 30 s; two of them may be missed."""
RUNS = count(1)


@pytest.fixture
def deployment(served: Served, write: Callable[..., Path], shared_store: Path) -> str:
    """Settings of which only the optimizer, and what it feeds, is not in the store yet; every service is at work."""
    if not all(map(alive, served.services().values())):  # a test before this one failed
        up_again(served)
    optimizer = {"name": "dpo", "beta": 0.1 + next(RUNS) / 1000, "batch_size": 8, "learning_rate": 1e-3}
    return served.deploy(write(store=str(shared_store), optimizer=optimizer))


@pytest.fixture
def soon_taken_for_dead(served: Served, deployment: str) -> Iterator[None]:
    """The shipped automation, as it is but for its patience: ten minutes are long for a test."""
    shipped = served.automation(ZOMBIES)
    assert shipped["enabled"] is True
    assert shipped["trigger"]["within"] == ZOMBIE_SECONDS == 600
    written = {key: shipped[key] for key in ("name", "description", "enabled", "trigger", "actions")}
    served.put(f"automations/{shipped['id']}", **written | {"trigger": {**shipped["trigger"], "within": SHORT_SECONDS}})
    yield
    served.put(f"automations/{shipped['id']}", **written)


@pytest.fixture
def run(served: Served, brake: Brake, deployment: str) -> str:
    """A run whose optimizer waits in the middle of its training."""
    brake.hold("dpo")
    run = served.start(deployment, job_variables=brake.job_variables)
    brake.held(served, run)
    return run


def up_again(served: Served) -> None:
    """What a person does after a crash: `align up` starts what is missing."""
    started = served.align("up")
    assert started.returncode == 0, started.stderr


def retried(served: Served, run: str) -> dict[str, str]:
    """The states that the stages of the run come to when it is retried, which must succeed."""
    again = served.run(PREFECT, "flow-run", "retry", run)
    assert again.returncode == 0, again.stdout + again.stderr
    until(lambda: served.state(run)["type"] != "SCHEDULED")
    assert served.ended(run)["type"] == "COMPLETED", served.told(run)
    return {stage: task["state"]["name"] for stage, task in served.tasks(run).items()}


def test_restart_of_the_server_ends_no_run(served: Served, brake: Brake, run: str) -> None:
    engine = engine_of(run)
    kill(served.services()["server"])
    brake.release()  # the stage ends while nobody listens
    up_again(served)
    assert served.ended(run)["type"] == "COMPLETED", served.told(run)
    starts = [state["name"] for state in served.states(run) if state["type"] == "RUNNING"]
    assert starts == ["Running"], "the same process went on"
    until(lambda: engine not in processes_of(run))


def test_outage_longer_than_the_clients_patience_costs_nothing_but_a_retry(
    served: Served, brake: Brake, run: str
) -> None:
    kill(served.services()["server"])
    brake.release()
    until(lambda: not processes_of(run))
    # The automation is left as it is: Prefect would forget this run, had `align up` changed it.
    up_again(served)
    assert served.ended(run)["type"] == "CRASHED", served.told(run)
    states = retried(served, run)
    assert [states[stage] for stage in ("ingest", "sft", "reference", "dpo")] == ["Cached"] * 4


@pytest.mark.usefixtures("soon_taken_for_dead")
def test_run_whose_machine_died_is_not_shown_as_running_for_ever(served: Served, brake: Brake, run: str) -> None:
    kill(served.services()["gpu"], *processes_of(run))
    assert served.state(run)["type"] == "RUNNING"
    ended = served.ended(run)
    assert (ended["type"], ended["message"][:15]) == ("CRASHED", "no sign of life"), ended
    brake.release()
    up_again(served)
    states = retried(served, run)
    assert [states[stage] for stage in ("ingest", "sft", "reference", "dpo")] == [*["Cached"] * 3, "Completed"]


def test_run_whose_worker_alone_died_goes_on(served: Served, brake: Brake, run: str) -> None:
    kill(served.services()["gpu"])
    brake.release()
    assert served.ended(run)["type"] == "COMPLETED", served.told(run)
    up_again(served)


def test_run_whose_process_died_takes_its_stage_along_and_is_crashed_at_once(
    served: Served, brake: Brake, run: str
) -> None:
    kill(engine_of(run))
    until(lambda: not processes_of(run), lambda: processes_of(run))
    assert served.ended(run)["type"] == "CRASHED", served.told(run)
    brake.release()
    states = retried(served, run)
    assert [states[stage] for stage in ("ingest", "sft", "reference", "dpo")] == [*["Cached"] * 3, "Completed"]
    log = served.log(run, task_run_id={"any_": [served.tasks(run)["dpo"]["id"]]})
    assert "resumed after step" in log, "the stage wrote its checkpoint when its parent was gone"
