"""The flow `build`: build one stage of another flow run, in the work pool of the deployment that runs it."""

from prefect import flow
from prefect.input.actions import create_flow_run_input

from alignment_core.artifacts.sharing import obtain
from alignment_core.errors import AlignmentError
from alignment_core.execution.build import StageResult, build, hold_leases, store_of
from alignment_core.execution.stage import StageCall
from alignment_core.planning.moved_inputs import check_moved
from alignment_core.planning.unpacked_base import BASE
from alignment_core.registry import load_registry
from alignment_flows.form.run_names import named
from alignment_flows.progress import StageProgress
from alignment_flows.tasks import without_traceback
from alignment_flows.work_pools.outcome import KEY, Outcome
from alignment_flows.work_pools.pools import FLOW


@flow(name=FLOW, flow_run_name=named("{call.label}"), persist_result=False)
@without_traceback
def build_moved(call: StageCall) -> None:
    """Build one stage that another flow run has planned, and push it to the remote that both share.

    Args:
        call: The stage. Runs with the setting `where` start this flow. It is not meant to be started by hand.
    """
    try:
        outcome = Outcome.success(_build(call.on_this_machine()))
    except AlignmentError as error:
        create_flow_run_input(KEY, Outcome.failure(error).model_dump(mode="json"))
        raise
    create_flow_run_input(KEY, outcome.model_dump(mode="json"))


def _build(call: StageCall) -> StageResult:
    with hold_leases([call]), StageProgress(call.label) as progress:
        if (base := call.standing.get(BASE)) is not None:
            obtain(store_of(call), base, progress)
        check_moved(call, load_registry())
        built = build(call, progress)
        progress.finish("found in the store" if built.cached else f"built in {built.seconds:.0f} s")
        return built
