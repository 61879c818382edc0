"""What a Prefect server shows of a flow run. It learns of task runs from events, a moment after they happened."""

from __future__ import annotations

import time
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, TaskRun

PATIENCE = 60.0


def task_runs(state: State[Any], count: int) -> list[TaskRun]:
    """The task runs of the ended flow run whose final state is `state`, once the server shows `count` of them ended.

    Gives what is shown after a minute where that never comes, for the test to judge.
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
