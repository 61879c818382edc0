"""The flow run of one stage in another work pool: start it, follow it to its end, or cancel it."""

import time
from collections.abc import Callable
from contextlib import suppress
from logging import ERROR, WARNING
from typing import Any, cast

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
    LogFilter,
    LogFilterFlowRunId,
    LogFilterLevel,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.input.actions import read_flow_run_input
from prefect.states import Cancelling
from prefect.utilities.urls import url_for

from alignment_core.errors import AlignmentError, StageCrashed
from alignment_core.execution.stage import StageCall
from alignment_flows.progress import StageProgress
from alignment_flows.work_pools.outcome import KEY, Outcome
from alignment_flows.work_pools.pools import deployment_of, no_deployment

POLL_SECONDS = 2.0
PATIENCE_SECONDS = 60.0
"""After this time, a run that no worker has taken is mentioned in the log."""
NOT_STARTED = {StateType.SCHEDULED, StateType.PENDING}
AGAIN = "Run again. The stage resumes from its last checkpoint"


class ChildRun:
    """The flow run that builds one stage in another work pool: a subflow of the flow run that starts it."""

    def __init__(self, call: StageCall, remote: str) -> None:
        """Start it.

        Args:
            call: the stage.
            remote: address of the remote, over which both machines share artifacts.

        Raises:
            ConfigError: the pool runs no stages any more.
        """
        assert call.runtime.pool is not None
        self._pool, self._label = call.runtime.pool.name, call.label
        given = call.model_copy(update={"runtime": call.runtime.model_copy(update={"remote": remote})})
        parameters = {"call": given.model_dump(mode="json")}
        name = deployment_of(self._pool)
        try:
            started = run_deployment(name, parameters=parameters, flow_run_name=call.label, timeout=0, as_subflow=True)
        except ObjectNotFound:  # it was deleted after the flow began
            raise no_deployment(self._pool, call.stage) from None
        self._run = cast(FlowRun, started)  # a coroutine only within an event loop
        self._warnings = 0

    def has_completed(self) -> bool:
        """Return whether the stage has been built, as far as the server says."""
        with suppress(AlignmentError, httpx.HTTPError), get_client(sync_client=True) as client:
            return self._state(client).is_completed()
        return False

    def follow(self, progress: StageProgress, meanwhile: Callable[[], None]) -> Outcome:
        """Wait for the end of the run, and show its progress and its warnings as those of the stage.

        Args:
            progress: the progress of the stage.
            meanwhile: is called again and again during the wait.

        Raises:
            AlignmentError: the stage's own error, or `StageCrashed` if the run ended otherwise.
        """
        page = url_for(self._run)
        progress.log(f"runs in the work pool {self._pool}{f': {page}' if page else ''}")
        state = self._end(progress, meanwhile)
        if (told := read_flow_run_input(KEY, self._run.id)) is None:
            raise self._without_outcome(state)
        outcome = Outcome.model_validate(told)
        outcome.raise_error()
        return outcome

    def cancel(self) -> None:
        """Cancel the run unless it has ended. Its stage writes a checkpoint first."""
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(self._run.id, Cancelling(message="The flow run that needs the stage has ended."))

    def _end(self, progress: StageProgress, meanwhile: Callable[[], None]) -> State[Any]:
        """Wait for the final state. A server that does not answer is asked again: the stage may be running on."""
        remind_at, away = time.monotonic() + PATIENCE_SECONDS, False
        with get_client(sync_client=True) as client:
            while True:
                state: State[Any] | None
                try:
                    state = self._state(client)
                    self._show(client, progress)
                    if not state.is_final():
                        meanwhile()
                    away = False
                except httpx.HTTPError as error:
                    if not away:
                        progress.warn(f"the Prefect server does not answer, and is asked again: {error}")
                    state, away = self._run.state, True
                if state is not None and state.is_final():
                    return state
                if state is not None and state.type in NOT_STARTED and time.monotonic() > remind_at:
                    remind_at = float("inf")
                    start = f"`prefect worker start --pool {self._pool} --limit 1`"
                    progress.warn(
                        f"no worker of the work pool {self._pool} has taken the stage yet. Start one: {start}"
                    )
                time.sleep(POLL_SECONDS)

    def _state(self, client: SyncPrefectClient) -> State[Any]:
        try:
            self._run = client.read_flow_run(self._run.id)
        except ObjectNotFound:
            deleted = f"its flow run {self._run.id} was deleted"
            raise AlignmentError(deleted, where=self._label, do=AGAIN) from None
        assert self._run.state is not None
        return self._run.state

    def _show(self, client: SyncPrefectClient, progress: StageProgress) -> None:
        """Show what the run has shown of its progress, and its new warnings."""
        of_run = ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[self._run.id]), type=ArtifactFilterType(any_=["progress"])
        )
        for page in client.read_artifacts(artifact_filter=of_run, limit=1):
            progress.show(float(cast(float, page.data)), page.description or "")
        level = LogFilterLevel(ge_=WARNING, le_=ERROR - 1)
        warnings = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[self._run.id]), level=level)
        for line in client.read_logs(warnings, offset=self._warnings):
            self._warnings += 1
            progress.warn(line.message)

    def _without_outcome(self, state: State[Any]) -> AlignmentError:
        """Return the error of a run that ended without telling how."""
        what = f"its flow run in the work pool {self._pool} ended as {state.name}"
        do = "Look at its log" if state.type == StateType.FAILED else AGAIN
        crash = StageCrashed(what, where=self._label, got=state.message, do=do)
        crash.killed = state.type == StateType.CRASHED
        return crash
