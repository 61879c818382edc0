"""What a Prefect server shows. It receives task runs and events with a short delay."""

from __future__ import annotations

import time
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, TaskRun

PATIENCE = 60.0


def task_runs(state: State[Any], count: int) -> list[TaskRun]:
    """Return the task runs of the flow run with final state `state`, once the server shows that `count` have ended.

    If that does not happen within a minute, return what is shown, so that the test can fail with it.
    """
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    until = time.monotonic() + PATIENCE
    with get_client(sync_client=True) as client:
        while True:
            shown = client.read_task_runs(flow_run_filter=of_run)
            settled = len(shown) == count and all(task.state and task.state.is_final() for task in shown)
            if settled or time.monotonic() > until:
                return shown
            time.sleep(0.05)


def events_about(resource: str, count: int) -> list[dict[str, Any]]:
    """Return the events about a resource, oldest first, once the server shows `count` of them.

    If that does not happen within a minute, return what is shown, so that the test can fail with it.

    Args:
        resource: the id of the resource. With `*` at its end: all resources that begin so.
        count: the number of events to wait for.
    """
    prefix = resource.endswith("*")
    chosen = {"id_prefix": [resource[:-1]]} if prefix else {"id": [resource]}
    until = time.monotonic() + PATIENCE
    with get_client(sync_client=True) as client:
        while True:
            answer = client.request("POST", "/events/filter", json={"filter": {"resource": chosen, "order": "ASC"}})
            found: list[dict[str, Any]] = answer.json()["events"]
            if len(found) >= count or time.monotonic() > until:
                return found
            time.sleep(0.05)


def related_to(event: dict[str, Any]) -> dict[str, str]:
    """Return the ids of an event's related resources by role."""
    return {each["prefect.resource.role"]: each["prefect.resource.id"] for each in event["related"]}
