"""The pipeline, from raw feedback to an aligned and evaluated adapter.

Each line of the flow is one Prefect task. What a stage reads and the key it is stored under are decided by
`alignment_core.stages.plan`; a stage that the run does not need is None all the way down.
"""

from collections.abc import Sequence

from prefect import flow

from alignment_core.registry import load_registry
from alignment_core.stages.build import Built, leased
from alignment_core.stages.plan import Plan, make_plan
from alignment_flows.form import PipelineForm, run_name, settings_of
from alignment_flows.promotion import promote_by_gate
from alignment_flows.run_report import publish_run_report
from alignment_flows.tasks import Stages, finished, told_in_words


@flow(name="align", flow_run_name=run_name, persist_result=False, validate_parameters=False)
@told_in_words
def align(config: PipelineForm, changes: Sequence[str] = ()) -> dict[str, Built]:
    """Take a language model from raw human feedback to an aligned adapter.

    Args:
        config: The settings of the run. A stage whose settings and inputs did not change is not run again.
        changes: Settings to change, such as `optimizer.beta=0.2`: for a schedule, which can hold no half settings.
    """
    stage, settings = Stages(), settings_of(config, changes)
    plan = make_plan(settings, load_registry())
    with leased(plan.calls().values()):
        pipeline(stage, plan)
        built = {name: stage.built(call) for name, call in plan.calls().items()}
        publish_run_report(settings, built, promote_by_gate(settings, built))
    return finished(built)


def pipeline(stage: Stages, plan: Plan) -> None:
    """Every stage of a plan, in order."""
    data = stage(plan.ingest)
    sft = stage(plan.sft, data)
    samples = stage(plan.sample, data, sft)
    ranked = stage(plan.rank, samples)
    votes = stage(plan.votes)
    older = stage(plan.older_votes)
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
