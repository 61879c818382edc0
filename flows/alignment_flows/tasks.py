"""A stage as a Prefect task: Cached where the store has it, progress while it runs, a report when it is done."""

import logging
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed, Failed
from rich.console import Console

from alignment_core.errors import AlignmentError, StageCrashed
from alignment_core.stages.base import StageCall
from alignment_core.stages.build import Built, build
from alignment_flows.progress import StageProgress
from alignment_flows.report import publish_report

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

NOTHING_NEW = "Nothing new"
"""Name of the final state of a run that found everything in the store."""


def told_in_words(run: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A flow or task that fails with our one paragraph, where Prefect would log a traceback."""

    @wraps(run)
    def wrapper(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return run(*args, **kwargs)
        except AlignmentError as error:
            # Prefect takes a returned state for the run's own, and raises its error where the result is asked for.
            return Failed(message=str(error), data=error)  # type: ignore[return-value]

    return wrapper


def _without_empty_traceback(record: logging.LogRecord) -> bool:
    if record.exc_info == (None, None, None):
        record.exc_info = None
    return True


# Prefect logs a task's returned failure as an exception, and then prints the traceback `NoneType: None`.
logging.getLogger("prefect.task_runs").addFilter(_without_empty_traceback)


def go_on_unread(console: Console) -> None:
    """Print into the void from here on: the worker that read what this process says has died."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


# Prefect's log is printed by rich, which would end a worker's run together with the worker.
if "PREFECT__FLOW_RUN_ID" in os.environ:
    Console.on_broken_pipe = go_on_unread  # type: ignore[assignment]


def was_killed(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether a task is worth another try: its stage was killed. An error of the user's or of ours would come again."""
    return isinstance(state.data, StageCrashed) and state.data.killed


# The artifact store decides what is cached; Prefect only shows it. One retry: what is killed again, for want of memory
# say, would be killed for ever.
@task(
    name="stage",
    task_run_name="{call.label}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=1,
    retry_condition_fn=was_killed,
)
@told_in_words
def build_stage(call: StageCall, parents: list[Built]) -> State[Any]:
    """Build one stage, or find it in the store. `parents` draws the graph; their keys are in `call`."""
    with StageProgress(call.label) as progress:
        built = build(call, progress)
        progress.log("found in the store" if built.cached else f"built in {built.seconds:.0f} s")
    publish_report(call, built)
    if built.cached:
        return Completed(name="Cached", message=f"{built.artifact.uri} verified", data=built)
    return Completed(message=built.artifact.uri, data=built)


def finished(built: dict[str, Built]) -> dict[str, Built]:
    """What a run returns: its results, in a state that says so where it had nothing to do."""
    if any(not stage.cached for stage in built.values()):
        return built
    # Prefect takes a returned state for the run's own.
    return Completed(name=NOTHING_NEW, message="all was in the store already", data=built)  # type: ignore[return-value]


class Stages:
    """Runs stages one by one, as a flow calls them: one GPU can hold no two. None is run twice in one flow.

    They run in the flow's own thread, where Ctrl-C and a cancellation arrive and stop the stage's process.
    """

    def __init__(self) -> None:
        self._states: dict[str, State[Any]] = {}

    def __call__(self, call: StageCall | None, *parents: StageCall | None) -> StageCall | None:
        """Build `call` after its parents and return it; None where the run does not need the stage.

        Raises:
            AlignmentError: what the stage failed with, now or when it was asked for before.
        """
        if call is None:
            return call
        if call.key in self._states:
            self._states[call.key].result(raise_on_failure=True)
            return call
        # A stage may need fewer than the pipeline could give it, never one that it was not given.
        read = [parent.key for parent in parents if parent is not None and parent.key in call.parents.values()]
        assert set(read) == set(call.parents.values()), f"{call.label} reads stages that the flow does not give it"
        state = build_stage(call, [self._states[key] for key in read], return_state=True)
        self._states[call.key] = state
        state.result(raise_on_failure=True)
        return call

    def has_built(self, call: StageCall) -> bool:
        """Whether this flow has run the stage, and it did not fail."""
        return call.key in self._states and self._states[call.key].is_completed()

    def built(self, call: StageCall) -> Built:
        """The result of a stage that this flow has run."""
        built: Built = self._states[call.key].result()
        return built

    def all_built(self) -> dict[str, Built]:
        """Every result of this flow by its key, in the order of the runs."""
        return {key: state.result() for key, state in self._states.items() if state.is_completed()}
