"""Run stages as Prefect tasks, with progress while they run and a report when they finish."""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.tasks import MaterializingTask
from rich.console import Console

from alignment_core.artifacts.models import SHORT
from alignment_core.errors import AlignmentError, StageCrashed
from alignment_core.execution.build import StageResult, build, check_cards_of, hold_leases
from alignment_core.execution.stage import StageCall
from alignment_flows.assets import assets_of, describe_assets
from alignment_flows.progress import StageProgress
from alignment_flows.reports.stage import publish_report
from alignment_flows.terminal.run_view import current_view
from alignment_flows.work_pools.moved_stages import MovedStages
from alignment_flows.work_pools.pools import check_pools

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

NOTHING_NEW = "Nothing new"
"""Name of the final state of a run that had nothing to build."""


def without_traceback(run: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Wrap a flow or task so that an AlignmentError fails it with one paragraph instead of a traceback."""

    @wraps(run)
    def wrapper(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return run(*args, **kwargs)
        except AlignmentError as error:
            # Prefect uses a returned state as the final state, and raises its error when the result is requested.
            return Failed(message=str(error), data=error)  # type: ignore[return-value]

    return wrapper


def _without_empty_traceback(record: logging.LogRecord) -> bool:
    if record.exc_info == (None, None, None):
        record.exc_info = None
    return True


# Prefect logs a returned Failed state as an exception, which would print the traceback `NoneType: None`.
logging.getLogger("prefect.task_runs").addFilter(_without_empty_traceback)
# At the exit of a process Prefect's senders count what they still have to send, below the message of how the run ended.
for sender in ("APILogWorker", "EventsWorker"):
    logging.getLogger(sender).setLevel(logging.ERROR)


def ignore_broken_pipe(console: Console) -> None:
    """Discard all further output, because the worker that reads it is gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


# rich prints Prefect's log. Its default on a broken pipe is to exit, which would end the run when its worker dies.
if "PREFECT__FLOW_RUN_ID" in os.environ:
    Console.on_broken_pipe = ignore_broken_pipe  # type: ignore[assignment]


def was_killed(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Return whether the stage was killed, so that a retry may succeed. Other errors would occur again."""
    return isinstance(state.data, StageCrashed) and state.data.killed


@without_traceback
def _build_stage(call: StageCall, parents: list[StageResult], moved: MovedStages) -> State[Any]:
    """Build one stage, or find it in the store. `parents` only draws the graph: their keys are already in `call`."""
    with StageProgress(call.label) as progress:
        built = build(call, progress) if call.runtime.pool is None else moved.build(call, progress)
        progress.finish("found in the store" if built.cached else f"built in {built.seconds:.0f} s")
    publish_report(call, built)
    describe_assets(call, built)
    name = f"{built.artifact.kind}/{built.artifact.key[:SHORT]}"
    if built.cached:
        return Completed(name="Cached", message=f"{name}, verified", data=built)
    return Completed(message=f"{name}, built in {built.seconds:.0f} s", data=built)


# The artifact store decides what is cached, and Prefect only shows it. One retry is enough: a stage that is killed
# twice, for example because it runs out of memory, would be killed every time. The call decides which asset is made.
build_stage = MaterializingTask(
    _build_stage,
    assets=(),
    name="stage",
    task_run_name="{call.label}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=1,
    retry_condition_fn=was_killed,
)


def final_state(built: dict[str, StageResult]) -> dict[str, StageResult]:
    """Return the results of a run, in a state named `NOTHING_NEW` if every stage was cached."""
    if any(not stage.cached for stage in built.values()):
        return built
    # Prefect uses a returned state as the final state of the run.
    return Completed(name=NOTHING_NEW, message="every stage is already in the store", data=built)  # type: ignore[return-value]


class StageRunner:
    """Runs stages one at a time, because one GPU cannot hold two, and each at most once per flow.

    Stages run in the flow's own thread, so that Ctrl-C and cancellation reach them and stop the stage's process. Those
    that run in other work pools may run at the same time.
    """

    def __init__(self) -> None:
        self._states: dict[str, State[Any]] = {}
        self._moved = MovedStages()

    @contextmanager
    def planned(self, calls: Iterable[StageCall]) -> Iterator[None]:
        """Announce the stages of a run, and run them in this block.

        What they read or write is protected from pruning, and the terminal shows them as the stages of the run. Those
        that run in other work pools are cancelled at the end of the block, if they have not ended.

        Raises:
            ConfigError: a stage cannot run in its work pool, or shall use more cards than this machine has.
        """
        calls = list(calls)
        check_pools(calls)
        check_cards_of(call for call in calls if call.runtime.pool is None)
        if (view := current_view()) is not None:
            view.plan((call.label for call in calls), flow_run.ui_url)
        with hold_leases(calls):
            try:
                yield
            finally:
                self._moved.cancel()

    def expect(self, calls: Iterable[StageCall]) -> None:
        """Name stages that follow. If they run in other work pools, they start as soon as what they read is built."""
        self._moved.expect(calls)

    def __call__(self, call: StageCall | None, *parents: StageCall | None) -> StageCall | None:
        """Build `call` after its parents and return it, or return None if the run does not need the stage.

        Raises:
            AlignmentError: the stage failed, now or earlier in this flow.
        """
        if call is None:
            return call
        if call.key in self._states:
            self._states[call.key].result(raise_on_failure=True)
            return call
        # A stage may ignore some of the parents that it is given, but must be given every parent that it reads.
        read = [parent.key for parent in parents if parent is not None and parent.key in call.parents.values()]
        assert set(read) == set(call.parents.values()), f"{call.label} reads stages that the flow does not pass to it"
        run = build_stage.with_options(assets=assets_of(call))
        if call.runtime.pool is None:  # else they start while the flow waits for the stage
            self._moved.start_following()
        state = run(call, [self._states[key] for key in read], self._moved, return_state=True)
        self._states[call.key] = state
        state.result(raise_on_failure=True)
        self._moved.note_built(call.key)
        return call

    def has_built(self, call: StageCall) -> bool:
        """Return whether this flow has run the stage successfully."""
        return call.key in self._states and self._states[call.key].is_completed()

    def built(self, call: StageCall) -> StageResult:
        """Return the result of a stage that this flow has run."""
        built: StageResult = self._states[call.key].result()
        return built

    def all_built(self) -> dict[str, StageResult]:
        """Return every result of this flow by key, in the order in which the stages ran."""
        return {key: state.result() for key, state in self._states.items() if state.is_completed()}
