"""The flow `compare`: train several contenders on the same SFT model, reward model and data, and write one report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.states import Failed
from pydantic import Field

from alignment_core.errors import AlignmentError
from alignment_core.execution.stage import StageCall
from alignment_core.planning.pipeline import Plan
from alignment_core.planning.unpacked_base import base_of_run
from alignment_flows.contenders import MOST_SEEDS, Contest, plans_of
from alignment_flows.form.parameters import secret_flow
from alignment_flows.form.settings import PipelineForm, read_settings, run_name
from alignment_flows.pipeline import pipeline, read_data
from alignment_flows.planned_run import check_memory_of_all
from alignment_flows.progress import tolerate_server_outage
from alignment_flows.reports.comparison import Comparison, OptimizerRun, compare_results
from alignment_flows.reports.comparison_page import FOLDER, check_folder, markdown, write_comparison
from alignment_flows.reports.over_seeds import Round, losers, over_seeds
from alignment_flows.tasks import StageRunner, without_traceback


@secret_flow(name="compare", flow_run_name=run_name, persist_result=False, validate_parameters=False)
@without_traceback
def compare(
    config: PipelineForm,
    optimizers: Sequence[str] = (),
    changes: Sequence[str] = (),
    folder: Path = FOLDER,
    grid: Sequence[str] = (),
    seeds: Annotated[int, Field(ge=1, le=MOST_SEEDS)] = 1,
    stop_losers: bool = False,
) -> Comparison:
    """Train several contenders on the same SFT model, reward model and data, and write one report.

    Args:
        config: The settings of the run. The settings under `optimizer` apply only to the optimizer that they name.
        optimizers: Names of the optimizers to compare. Empty: the one in the settings.
        changes: Settings to override, for all optimizers (`seed=1`) or for one (`kto.learning_rate=1e-4`).
        folder: Folder for the report, on the machine that runs the flow.
        grid: Settings with several values, for all optimizers (`optimizer.beta=0.05,0.1`) or for one (`kto.beta=1,2`).
        seeds: Number of seeds, from the seed of the settings upwards. The report has intervals over seeds.
        stop_losers: Whether contenders that are clearly worse than the best get no more seeds.
    """
    check_folder(Path(folder))
    contest = Contest(tuple(optimizers), tuple(changes), tuple(grid), seeds, stop_losers)
    stage, settings = StageRunner(), contest.rounds(read_settings(config, ()))
    for each in (each for contenders in settings.values() for each in contenders.values()):
        stage(base_of_run(each))
    rounds = plans_of(settings, contest)
    calls = [call for plans in rounds.values() for plan in plans.values() for call in plan.calls().values()]
    with stage.planned(calls):
        for plan in (plan for plans in rounds.values() for plan in plans.values()):
            read_data(stage, plan)  # so that nothing is trained if one of them lacks data
        unknown = check_memory_of_all(next(iter(rounds.values())))  # or does not fit, which no seed changes
        for contender, why in unknown.items():
            get_run_logger().warning("whether %s fits into memory is not known: %s", contender, why)
        comparison = seed_by_seed(stage, rounds, contest)
    write_comparison(comparison, Path(folder))
    with tolerate_server_outage():
        names = ", ".join(next(iter(rounds.values())))
        create_markdown_artifact(markdown(comparison), key="comparison", description=f"{names} side by side")
    if failed := [run for run in comparison.runs if run.error]:
        message = "; ".join(f"{run.name}: {run.error}" for run in failed)
        # Prefect uses a returned state as the final state of the run. It carries the report on the other contenders.
        return Failed(message=message, data=comparison)  # type: ignore[return-value]
    return comparison


def seed_by_seed(stage: StageRunner, rounds: Mapping[int, Mapping[str, Plan]], contest: Contest) -> Comparison:
    """Run the contenders with one seed after the other, and return the comparison.

    A contender that failed gets no more seeds. Neither does one that lost, if the contest stops losers.
    """
    done: list[Round] = []
    out: set[str] = set()
    for seed, plans in rounds.items():
        runs = side_by_side(stage, {name: plan for name, plan in plans.items() if name not in out})
        done.append(Round(seed, runs))
        out |= {run.name for run in runs if run.error}
        if contest.stop_losers:
            out |= set(losers(done))
    if not contest.is_sweep:
        return compare_results(done[0].runs)
    return over_seeds(done, stop_losers=contest.stop_losers)


def side_by_side(stage: StageRunner, plans: Mapping[str, Plan]) -> list[OptimizerRun]:
    """Run every plan, even if another one fails. The plans do not read each other's models."""
    runs = []
    stage.expect(call for plan in plans.values() for call in plan.calls().values())
    for name, plan in plans.items():
        error: AlignmentError | None = None
        try:
            pipeline(stage, plan)
        except AlignmentError as caught:
            error = caught
        runs.append(OptimizerRun(name, plan.optimize.config["optimizer"], _built(stage, plan), error))
    return runs


def _built(stage: StageRunner, plan: Plan) -> dict[str, Any]:
    """Return the stages of a plan that were built, by their names in the plan."""
    calls: dict[str, StageCall] = plan.calls()
    return {name: stage.built(call) for name, call in calls.items() if stage.has_built(call)}
