"""The stages of one flow run that run in other work pools.

Several of them may run at once: whenever the flow waits, those that will follow are started as soon as what they read
has been built. The flow still asks for its stages one after the other, so it reads the same with and without pools.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import httpx
from prefect.context import TaskRunContext
from prefect.logging import get_run_logger

from alignment_core.artifacts.layout import described
from alignment_core.artifacts.sharing import obtain, push, required
from alignment_core.errors import AlignmentError, ArtifactError
from alignment_core.execution.build import StageResult, find, store_of
from alignment_core.execution.stage import StageCall
from alignment_core.progress import Progress, Silent
from alignment_flows.progress import StageProgress
from alignment_flows.work_pools.child_run import ChildRun


class MovedStages:
    """Builds stages in their work pools."""

    def __init__(self) -> None:
        self._following: dict[str, StageCall] = {}
        self._runs: dict[str, ChildRun] = {}
        self._built: set[str] = set()

    def expect(self, calls: Iterable[StageCall]) -> None:
        """Name stages that the flow will ask for. Those of other work pools may be started before that."""
        self._following |= {call.key: call for call in calls if call.runtime.pool is not None}

    def note_built(self, key: str) -> None:
        """Note that the flow has the artifact with this key, so that stages that read it can be started."""
        self._built.add(key)

    def build(self, call: StageCall, progress: StageProgress) -> StageResult:
        """Return the artifact of a stage from the store, from the remote, or from a run in its work pool.

        Raises:
            AlignmentError: the error of the stage, or `StageCrashed` if its run ended otherwise.
        """
        if call.key not in self._runs:
            if (found := find(call, progress)) is not None:
                return found
            self._start(call, progress)
        try:
            outcome = self._runs[call.key].follow(progress, self.start_following)
        except AlignmentError:  # the run has ended; any other exception ends the flow, which cancels the run
            del self._runs[call.key]
            raise
        del self._runs[call.key]
        artifact = obtain(store_of(call), call.key, progress)
        if artifact is None:
            assert call.runtime.pool is not None
            raise ArtifactError(
                f"the stage ended in the work pool {call.runtime.pool.name}, and the remote does not hold its artifact",
                where=call.label,
                got=call.key,
                do="Check that the remote can be reached from the workers of the pool, and run again",
            )
        return StageResult(
            artifact, outcome.cached, outcome.seconds, artifact.manifest().metrics, outcome.listener_errors
        )

    def start_following(self) -> None:
        """Start the stages of other work pools that will follow and can be built now.

        A stage that cannot be started is left to the flow, which fails when it asks for it. If the server does not
        answer, the next call tries again.
        """
        self._built |= {key for key, run in self._runs.items() if key not in self._built and run.has_completed()}
        for key, call in list(self._following.items()):
            if key in self._built or key in self._runs or not self._built.issuperset(call.parents.values()):
                continue
            try:
                if _is_there(call):
                    self._built.add(key)
                else:
                    with _outside_of_tasks():
                        self._start(call, Silent())
            except AlignmentError:
                del self._following[key]
            except httpx.HTTPError:
                return

    def cancel(self) -> None:
        """Cancel the runs that the flow does not need any more, because it has ended."""
        runs, self._runs = self._runs, {}
        for run in runs.values():
            try:
                run.cancel()
            except httpx.HTTPError as error:
                get_run_logger().warning("a stage in another work pool could not be cancelled: %s", error)

    def _start(self, call: StageCall, progress: Progress) -> None:
        store = store_of(call)
        for key in call.reads().values():
            push(store, key, progress)
        self._runs[call.key] = ChildRun(call, required(store).address)


def _is_there(call: StageCall) -> bool:
    store = store_of(call)
    return described(store.root / call.stage / call.key) is not None or required(store).holds(call.key)


@contextmanager
def _outside_of_tasks() -> Iterator[None]:
    """Let Prefect draw what starts in this block below the flow run, not below the stage that the flow waits for."""
    token = TaskRunContext.__var__.set(None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        TaskRunContext.__var__.reset(token)
