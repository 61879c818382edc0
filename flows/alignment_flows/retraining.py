"""The flow `retrain`, which runs on a schedule, by hand, or when enough votes have come in."""

from collections.abc import Mapping, Sequence

from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import PipelineConfig
from alignment_core.execution.build import StageResult
from alignment_core.planning.retrain import RETRAINED, TooFewVotes, plan_retrain
from alignment_core.planning.unpacked_base import base_of_run
from alignment_core.registry import load_registry
from alignment_flows.form.parameters import secret_flow
from alignment_flows.form.settings import PipelineForm, read_settings, run_name
from alignment_flows.pipeline import pipeline
from alignment_flows.promotion import promote_by_gate, promote_if_approved
from alignment_flows.promotion.approval import stages_asked_about
from alignment_flows.reports.run import publish_run_report
from alignment_flows.tasks import StageRunner, final_state, without_traceback

SKIPPED = "Skipped"
"""Name of the final state of a retrain that did not have enough new votes."""


@secret_flow(name="retrain", flow_run_name=run_name, persist_result=False, validate_parameters=False)
@without_traceback
def retrain(config: PipelineForm, changes: Sequence[str] = ()) -> dict[str, StageResult] | State[TooFewVotes]:
    """Retrain the production model on the votes since the last successful retrain, and promote it if it is better.

    Args:
        config: The settings of the run. `retrain` sets how many votes are needed and how much older data is mixed in.
        changes: Settings to override, such as `optimizer.beta=0.2`. A schedule uses them to change single settings.
    """
    stage, settings = StageRunner(), read_settings(config, changes)
    if (asked := stages_asked_about(settings)) is not None:
        publish_run_report(settings, asked, promote_if_approved(settings, asked))
        return asked
    stage(base_of_run(settings))
    plan = plan_retrain(settings, load_registry())
    if isinstance(plan, TooFewVotes):
        # Prefect uses a returned state as the final state of the run.
        return Completed(name=SKIPPED, message=str(plan), data=plan)
    with stage.planned(plan.calls().values()):
        pipeline(stage, plan)
        built = {name: stage.built(call) for name, call in plan.calls().items()}
        _remember(settings, built)  # first, because the run may be suspended until a person decides
        publish_run_report(settings, built, promote_by_gate(settings, built))
    return final_state(built)


def _remember(config: PipelineConfig, built: Mapping[str, StageResult]) -> None:
    """Record that these votes have been used, whether or not the model was promoted."""
    model = built["optimize"].artifact
    by = f"flow run {flow_run.name} of {config.name}"
    ArtifactStore(config.store, config.remote).aliases.promote(
        RETRAINED, model.kind, model.key, by=by, reason="its votes were used"
    )
