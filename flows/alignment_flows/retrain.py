"""The recurring retrain: on a schedule, by hand, or once enough votes came in."""

from collections.abc import Mapping, Sequence

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import PipelineConfig
from alignment_core.registry import load_registry
from alignment_core.stages.build import Built, leased
from alignment_core.stages.plan_retrain import RETRAINED, TooFew, plan_retrain
from alignment_flows.form import PipelineForm, run_name, settings_of
from alignment_flows.pipeline import pipeline
from alignment_flows.promotion import promote_by_gate
from alignment_flows.run_report import publish_run_report
from alignment_flows.tasks import Stages, finished, told_in_words

SKIPPED = "Skipped"
"""Name of the final state of a retrain that found too few new votes."""


@flow(name="retrain", flow_run_name=run_name, persist_result=False, validate_parameters=False)
@told_in_words
def retrain(config: PipelineForm, changes: Sequence[str] = ()) -> dict[str, Built] | State[None]:
    """Retrain the model in production on the votes since the last retrain that ended well, and promote what is better.

    Args:
        config: The settings of the run; `retrain` says how many votes are wanted and how much older data is mixed in.
        changes: Settings to change, such as `optimizer.beta=0.2`: for a schedule, which can hold no half settings.
    """
    stage, settings = Stages(), settings_of(config, changes)
    plan = plan_retrain(settings, load_registry())
    if isinstance(plan, TooFew):
        # Prefect takes a returned state for the run's own.
        return Completed(name=SKIPPED, message=str(plan))
    with leased(plan.calls().values()):
        pipeline(stage, plan)
        built = {name: stage.built(call) for name, call in plan.calls().items()}
        publish_run_report(settings, built, promote_by_gate(settings, built))
        _remember(settings, built)
    return finished(built)


def _remember(config: PipelineConfig, built: Mapping[str, Built]) -> None:
    """From here on these votes are not new any more, whether the model was promoted or not."""
    model = built["optimize"].artifact
    by = f"flow run {flow_run.name} of {config.name}"
    ArtifactStore(config.store).aliases.promote(RETRAINED, model.kind, model.key, by=by, reason="its votes were used")
