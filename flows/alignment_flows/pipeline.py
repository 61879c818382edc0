"""The pipeline, from raw feedback to an aligned and evaluated adapter.

Each stage is one Prefect task. `alignment_core.planning.pipeline` decides the inputs and the cache key of each stage. A
stage that the run does not need is None.
"""

from collections.abc import Sequence

from alignment_core.config import PipelineConfig
from alignment_core.execution.build import StageResult
from alignment_core.execution.stage import StageCall
from alignment_core.planning.data_needs import check_data
from alignment_core.planning.pipeline import Plan, plan_pipeline
from alignment_core.planning.unpacked_base import base_of_run
from alignment_core.registry import load_registry
from alignment_flows.form.parameters import secret_flow
from alignment_flows.form.settings import PipelineForm, read_settings, run_name
from alignment_flows.promotion import promote_by_gate, promote_if_approved
from alignment_flows.promotion.approval import stages_asked_about
from alignment_flows.reports.run import publish_run_report
from alignment_flows.tasks import StageRunner, final_state, without_traceback


@secret_flow(name="align", flow_run_name=run_name, persist_result=False, validate_parameters=False)
@without_traceback
def align(config: PipelineForm, changes: Sequence[str] = ()) -> dict[str, StageResult]:
    """Train an aligned adapter for a language model from raw human feedback.

    Args:
        config: The settings of the run. Stages whose settings and inputs have not changed are reused.
        changes: Settings to override, such as `optimizer.beta=0.2`. A schedule uses them to change single settings.
    """
    return run_pipeline(read_settings(config, changes))


def run_pipeline(settings: PipelineConfig) -> dict[str, StageResult]:
    """Run the pipeline within the current flow run. Return its stages by their names in the plan."""
    stage = StageRunner()
    if (asked := stages_asked_about(settings)) is not None:
        publish_run_report(settings, asked, promote_if_approved(settings, asked))
        return asked
    stage(base_of_run(settings))
    plan = plan_pipeline(settings, load_registry())
    with stage.planned(plan.calls().values()):
        pipeline(stage, plan)
        built = {name: stage.built(call) for name, call in plan.calls().items()}
        publish_run_report(settings, built, promote_by_gate(settings, built))
    return final_state(built)


def read_data(stage: StageRunner, plan: Plan) -> tuple[StageCall | None, StageCall | None, StageCall | None]:
    """Run the stages that read the feedback, and return their calls.

    Raises:
        DataError: the data lack rows that a later stage needs.
    """
    read = stage(plan.ingest), stage(plan.votes), stage(plan.older_votes)
    check_data(plan.calls(), {name: stage.built(plan.calls()[name]).artifact.path for name in plan.data_stages()})
    return read


def pipeline(stage: StageRunner, plan: Plan) -> None:
    """Run the stages of a plan in order."""
    data, votes, older = read_data(stage, plan)
    stage.expect(plan.calls().values())
    adapter = stage(plan.adapter)
    sft = stage(plan.sft, data, adapter) or adapter
    samples = stage(plan.sample, data, sft)
    ranked = stage(plan.rank, samples)
    reward = stage(plan.reward, data, ranked, votes, older, sft)
    reference = stage(plan.reference, data, ranked, votes, older, sft)
    policy = stage(plan.optimize, data, ranked, votes, older, sft, reward, reference)
    judge = stage(plan.judge, data, ranked, votes, older, sft)
    safety = stage(plan.ingest_safety)
    before = stage(plan.evaluate_sft, data, safety, sft, reward)
    after = stage(plan.evaluate, data, votes, safety, sft, reward, policy)
    rival_data, rival_safety = stage(plan.ingest_production), stage(plan.ingest_production_safety)
    rival = stage(plan.evaluate_production, data, rival_data, safety, rival_safety, sft, reward, policy)
    over_sft = stage(plan.over_sft, after, before, sft, judge)
    over_production = stage(plan.over_production, after, rival, sft, reward, judge)
    stage(plan.gate, after, over_sft, over_production)
    stage(plan.lm_eval_sft, sft)
    stage(plan.lm_eval, policy)
