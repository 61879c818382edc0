"""One stage on its own, with the stages that it reads."""

from collections.abc import Sequence
from typing import Literal

from prefect import flow

from alignment_core.errors import ConfigError
from alignment_core.registry import load_registry
from alignment_core.stages.base import StageCall
from alignment_core.stages.build import Built, leased
from alignment_core.stages.plan import Plan, make_plan
from alignment_flows.form import PipelineForm, run_name, settings_of
from alignment_flows.tasks import Stages, told_in_words

StageName = Literal[
    "ingest",
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


@flow(name="stage", flow_run_name=run_name, persist_result=False, validate_parameters=False)
@told_in_words
def stage(config: PipelineForm, until: StageName, changes: Sequence[str] = ()) -> Built:
    """Build one stage of a run, after the stages that it reads.

    Args:
        config: The settings of the run. A stage whose settings and inputs did not change is not run again.
        until: The stage to build.
        changes: Settings to change, such as `optimizer.beta=0.2`: for a schedule, which can hold no half settings.
    """
    plan = make_plan(settings_of(config, changes), load_registry())
    wanted = _wanted(plan, until)
    run = Stages()
    with leased(plan.calls().values()):
        for call in (call for call in plan.calls().values() if call.key in wanted):
            run(call, *(wanted[key] for key in call.parents.values()))
    return run.built(plan.calls()[until])


def _wanted(plan: Plan, until: str) -> dict[str, StageCall]:
    """The stage and everything that it reads, by key."""
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
