"""Runs that a schedule starts: one at a time on one GPU, each with its schedule's settings, nothing done twice."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from brake import Brake
from served import PREFECT, Served, engine_of, kill, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def schedule_once(served: Served, deployment: str, moment: datetime, **parameters: Any) -> None:
    """One more schedule of the deployment: a single run at that moment."""
    rule = f"DTSTART:{moment:%Y%m%dT%H%M%S}\nRRULE:FREQ=DAILY;COUNT=1"
    schedule = {"schedule": {"rrule": rule, "timezone": "UTC"}, "active": True, "parameters": parameters}
    identity = served.deployment(deployment)["id"]
    served.post(f"deployments/{identity}/schedules", [schedule])


def runs_of(served: Served, *deployments: str) -> list[dict[str, Any]]:
    """The deployments' runs, in the order in which they were begun; those that wait last."""
    chosen = {"id": {"any_": [served.deployment(name)["id"] for name in deployments]}}
    found = served.post("flow_runs/filter", deployments=chosen)
    return sorted(found, key=lambda run: run["start_time"] or "9")


@pytest.mark.parametrize("deployments", [1, 2], ids=["one deployment", "two deployments"])
def test_runs_scheduled_at_once_queue_for_the_gpu_with_their_own_settings(
    served: Served, brake: Brake, write: Callable[..., Path], shared_store: Path, deployments: int
) -> None:
    store = str(shared_store)
    names = [served.deploy(write(name=f"queue-{deployments}-{n}", store=store)) for n in range(deployments)]
    for name in names:
        served.patch(f"deployments/{served.deployment(name)['id']}", job_variables=brake.job_variables)
    brake.hold("dpo")
    soon = datetime.now(UTC) + timedelta(seconds=5)
    betas = [0.2 + deployments / 100, 0.3 + deployments / 100]
    for n, beta in enumerate(betas):
        schedule_once(served, names[n % deployments], soon, changes=[f"optimizer.beta={beta}"])
    until(lambda: len(runs_of(served, *names)) == 2)
    until(lambda: runs_of(served, *names)[0]["start_time"])
    first, second = runs_of(served, *names)
    brake.held(served, first["id"])
    # The server calls a run late after fifteen seconds: by then the worker has asked for work several times.
    until(lambda: served.state(second["id"])["name"] in {"Late", "AwaitingConcurrencySlot"})
    assert served.state(first["id"])["name"] == "Running"
    kill(engine_of(first["id"]))
    assert served.ended(first["id"])["type"] == "CRASHED"
    until(lambda: served.state(second["id"])["type"] == "RUNNING", lambda: served.told(second["id"]))
    brake.release()
    assert served.ended(second["id"])["type"] == "COMPLETED", served.told(second["id"])
    retry = served.run(PREFECT, "flow-run", "retry", first["id"])
    assert retry.returncode == 0, retry.stderr
    until(lambda: served.state(first["id"])["type"] == "COMPLETED", lambda: served.told(first["id"]))
    changes = {run["parameters"]["changes"][0] for run in (first, second)}
    assert changes == {f"optimizer.beta={beta}" for beta in betas}
    for run in (first, second):
        beta = run["parameters"]["changes"][0].partition("=")[2]
        assert any(f"| optimizer.beta | {beta} |" in report for report in served.reports(run["id"])), beta


def test_scheduled_run_that_finds_nothing_new_ends_in_seconds(
    served: Served, write: Callable[..., Path], shared_store: Path
) -> None:
    deployment = served.deploy(write(name="nothing-new", store=str(shared_store), seed=1))
    first = served.start(deployment)
    assert served.ended(first)["type"] == "COMPLETED", served.told(first)
    schedule_once(served, deployment, datetime.now(UTC) + timedelta(seconds=2))
    until(lambda: len(runs_of(served, deployment)) == 2)
    second = runs_of(served, deployment)[1]["id"]
    assert served.ended(second)["name"] == "Nothing new", served.told(second)
    took = {run["id"]: run["total_run_time"] for run in runs_of(served, deployment)}
    assert took[second] < 0.2 * took[first], took
