"""Scheduled runs: one at a time on one GPU, each with its schedule's settings, and without repeated work."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from brake import Brake
from served import PREFECT, Served, engine_of, kill, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def schedule_at_once(served: Served, *due: tuple[str, dict[str, Any]]) -> list[str]:
    """Schedule runs of the deployments, with the given parameters, for the same moment. Return the ids of the runs.

    The server looks for new schedules every few seconds and plans no runs for a moment in the past. If it is too busy,
    a second attempt gives it more time.
    """
    identities = [served.deployment(name)["id"] for name, _ in due]
    for seconds in (45, 300):
        moment = datetime.now(UTC) + timedelta(seconds=seconds)
        rule = {"rrule": f"DTSTART:{moment:%Y%m%dT%H%M%S}\nRRULE:FREQ=DAILY;COUNT=1", "timezone": "UTC"}
        for identity, (_, parameters) in zip(identities, due, strict=True):
            schedule = {"schedule": rule, "active": True, "parameters": parameters}
            served.post(f"deployments/{identity}/schedules", [schedule])
        while datetime.now(UTC) < moment:
            if len(found := planned(served, identities)) == len(due):
                return found
            time.sleep(0.5)
    raise AssertionError("the server planned no runs")


def planned(served: Served, deployments: list[str]) -> list[str]:
    """Return the ids of the runs that the deployments' schedules created."""
    runs = served.post("flow_runs/filter", deployments={"id": {"any_": deployments}})
    return [run["id"] for run in runs if run["auto_scheduled"]]


def started_at(served: Served, run: str) -> str:
    """Return the start time of a run, or "9", which sorts after all times, if it has not started."""
    return str(served.get(f"flow_runs/{run}")["start_time"] or "9")


@pytest.mark.parametrize("deployments", [1, 2], ids=["one deployment", "two deployments"])
def test_runs_scheduled_at_once_queue_for_the_gpu_with_their_own_settings(
    served: Served, brake: Brake, write: Callable[..., Path], shared_store: Path, deployments: int
) -> None:
    store = str(shared_store)
    names = [served.deploy(write(name=f"queue-{deployments}-{n}", store=store)) for n in range(deployments)]
    for name in names:
        served.patch(f"deployments/{served.deployment(name)['id']}", job_variables=brake.job_variables)
    brake.hold("dpo")
    betas = [f"0.2{deployments}", f"0.3{deployments}"]
    changes = [{"changes": [f"optimizer.beta={beta}"]} for beta in betas]
    runs = schedule_at_once(served, *zip([names[0], names[-1]], changes, strict=True))
    until(lambda: any(started_at(served, run) != "9" for run in runs))
    first, second = sorted(runs, key=lambda run: started_at(served, run))
    brake.held(served, first)
    # The server marks a run as late after 15 seconds. By then the worker has asked for work several times.
    until(lambda: served.state(second)["name"] in {"Late", "AwaitingConcurrencySlot"})
    assert served.state(first)["name"] == "Running"
    kill(engine_of(first))
    ended = served.ended(first)
    assert ended["type"] == "CRASHED"
    until(lambda: served.state(second)["type"] == "RUNNING", lambda: served.state_and_log(second))
    assert started_at(served, second) > ended["timestamp"]
    brake.release()
    assert served.ended(second)["type"] == "COMPLETED", served.state_and_log(second)
    retry = served.run(PREFECT, "flow-run", "retry", first)
    assert retry.returncode == 0, retry.stderr
    until(lambda: served.state(first)["type"] == "COMPLETED", lambda: served.state_and_log(first))
    given = [served.get(f"flow_runs/{run}")["parameters"]["changes"] for run in (first, second)]
    assert sorted(given) == [schedule["changes"] for schedule in changes]
    for run, (change,) in zip((first, second), given, strict=True):
        beta = change.partition("=")[2]
        assert any(f"| optimizer.beta | {beta} |" in report for report in served.reports(run)), beta


def test_scheduled_run_with_everything_cached_ends_in_seconds(
    served: Served, write: Callable[..., Path], shared_store: Path
) -> None:
    deployment = served.deploy(write(name="nothing-new", store=str(shared_store), seed=1))
    first = served.start(deployment)
    assert served.ended(first)["type"] == "COMPLETED", served.state_and_log(first)
    (second,) = schedule_at_once(served, (deployment, {}))
    assert served.ended(second)["name"] == "Nothing new", served.state_and_log(second)
    took = {run: served.get(f"flow_runs/{run}")["total_run_time"] for run in (first, second)}
    assert took[second] < min(10, 0.5 * took[first]), took
