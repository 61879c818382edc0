"""The flow `stage`: build one stage and the stages that it reads."""

from collections.abc import Sequence
from typing import Literal

from alignment_core.errors import ConfigError
from alignment_core.execution.build import StageResult
from alignment_core.execution.stage import StageCall
from alignment_core.planning.pipeline import Plan, plan_pipeline
from alignment_core.planning.unpacked_base import base_of_run
from alignment_core.registry import load_registry
from alignment_flows.form.parameters import secret_flow
from alignment_flows.form.settings import PipelineForm, read_settings, run_name
from alignment_flows.tasks import StageRunner, without_traceback

StageName = Literal[
    "ingest",
    "adapter",
    "sft",
    "sample",
    "rank",
    "reward",
    "reference",
    "optimize",
    "judge",
    "ingest_safety",
    "ingest_production",
    "ingest_production_safety",
    "evaluate_sft",
    "evaluate",
    "evaluate_production",
    "over_sft",
    "over_production",
    "gate",
]  # the fields of `Plan`


@secret_flow(name="stage", flow_run_name=run_name, persist_result=False, validate_parameters=False)
@without_traceback
def stage(config: PipelineForm, until: StageName, changes: Sequence[str] = ()) -> StageResult:
    """Build one stage of a run, and the stages that it reads.

    Args:
        config: The settings of the run. Stages whose settings and inputs have not changed are reused.
        until: The stage to build.
        changes: Settings to override, such as `optimizer.beta=0.2`. A schedule uses them to change single settings.
    """
    run, settings = StageRunner(), read_settings(config, changes)
    run(base_of_run(settings))
    plan = plan_pipeline(settings, load_registry())
    wanted = _wanted(plan, until)
    with run.planned(plan.calls().values()):
        for call in (call for call in plan.calls().values() if call.key in wanted):
            run(call, *(wanted[key] for key in call.parents.values()))
    return run.built(plan.calls()[until])


def _wanted(plan: Plan, until: str) -> dict[str, StageCall]:
    """Return the stage and everything that it reads, by key."""
    calls = plan.calls()
    if until not in calls:
        raise ConfigError("this run has no such stage", where="until", got=until, expected=f"one of {', '.join(calls)}")
    by_key = {call.key: call for call in calls.values()}
    wanted: dict[str, StageCall] = {}
    open_keys = [calls[until].key]
    while open_keys:
        call = by_key[open_keys.pop()]
        wanted[call.key] = call
        open_keys += call.parents.values()
    return wanted
