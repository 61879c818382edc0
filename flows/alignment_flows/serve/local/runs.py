"""Run the flows in this process, recorded by a Prefect server."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import PipelineConfig
from alignment_core.execution.build import StageResult
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.planning.retrain import TooFewVotes, plan_retrain
from alignment_core.planning.sample import plan_sampling
from alignment_core.registry import load_registry
from alignment_flows.contenders import Contest, plans_of
from alignment_flows.reports.places import page_of
from alignment_flows.serve.cached_run import all_built, find_cached_run, has_server
from alignment_flows.serve.local.event_loop import outside_event_loop
from alignment_flows.serve.local.server import prepare_server, recorded_run
from alignment_flows.serve.local.settings import prepared, resolved

if TYPE_CHECKING:
    from alignment_flows.reports.comparison import Comparison


@dataclass(frozen=True)
class FinishedRun:
    """A finished run of the pipeline.

    Attributes:
        name: the name of the run from its settings.
        flow_run_id: the id of the flow run in Prefect; None if the run had nothing to do and there was no server.
        stages: the results of the stages by their names in the plan, in the order of the plan.
        aliases: the aliases that the aligned model has now.
    """

    name: str
    flow_run_id: str | None
    stages: dict[str, StageResult]
    aliases: list[str]

    @property
    def adapter(self) -> Path:
        """Folder of the aligned adapter, in PEFT's format."""
        return self.stages["optimize"].artifact.path

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics of the aligned model on the held-out split."""
        return self.stages["evaluate"].metrics


@outside_event_loop
def run_pipeline(config: PipelineConfig) -> FinishedRun:
    """Run the pipeline as a Prefect flow run, unless it has nothing to do and there is no server to record it.

    Raises:
        AlignmentError: a setting is wrong, or a stage failed.
    """
    # Planning first reports mistakes before the run is recorded.
    settings = prepared(config)
    plan = plan_pipeline(settings, load_registry())
    if (built := find_cached_run(config, plan)) is not None:
        _write_missing_page(settings, built)
        return _finished(config, built, None)
    prepare_server()
    from alignment_flows.pipeline import align

    # Looking through the store is only worth it where there may be heartbeats: a temporary server gets none.
    with recorded_run(heartbeats=not (has_server() and all_built(plan))):
        state = align(config, return_state=True)
    return _finished(settings, state.result(raise_on_failure=True), state)


def _write_missing_page(config: PipelineConfig, built: dict[str, StageResult]) -> None:
    """Write the page of a run that no flow reports on, if it is not there. The store may be read-only."""
    if page_of(config.name, built).is_file():
        return
    from alignment_flows.reports.run_page import write_run_page

    try:
        write_run_page(config, built, None)
    except OSError as error:
        print(f"could not write the report of the run: {error}", file=sys.stderr)


def _finished(config: PipelineConfig, built: dict[str, StageResult], state: Any) -> FinishedRun:
    aliases = ArtifactStore(config.store, config.remote).aliases.of(built["optimize"].artifact.key)
    flow_run_id = None if state is None else str(state.state_details.flow_run_id)
    return FinishedRun(config.name, flow_run_id, built, aliases)


@outside_event_loop
def run_comparison(config: PipelineConfig, contest: Contest, folder: Path) -> "Comparison":
    """Run the comparison as a Prefect flow run. The result lists the contenders that failed.

    Raises:
        AlignmentError: a setting is wrong.
    """
    from alignment_flows.reports.comparison_page import check_folder

    check_folder(folder)
    prepare_server()
    from alignment_flows.comparison import compare

    # Planning first reports mistakes before the run is recorded.
    rounds = contest.rounds(resolved(config))
    plans_of({seed: {name: prepared(each) for name, each in found.items()} for seed, found in rounds.items()}, contest)
    with recorded_run():
        state = compare(config, **vars(contest), folder=folder, return_state=True)
    comparison = state.result(raise_on_failure=False)
    if isinstance(comparison, BaseException):
        raise comparison
    return comparison


@outside_event_loop
def run_retrain(config: PipelineConfig) -> FinishedRun | TooFewVotes:
    """Run the flow `retrain`, and return its result, or why it was skipped.

    Raises:
        AlignmentError: a setting is wrong, or a stage failed.
    """
    prepare_server()
    # Planning first reports mistakes before the run is recorded.
    settings = prepared(config)
    plan_retrain(settings, load_registry())
    with recorded_run():
        from alignment_flows.retraining import SKIPPED, retrain

        state = retrain(config, return_state=True)
    if state.name == SKIPPED:
        skipped = state.result()
        assert isinstance(skipped, TooFewVotes)
        return skipped
    stages: Any = state.result(raise_on_failure=True)
    return _finished(settings, stages, state)


@outside_event_loop
def run_sampling(config: PipelineConfig, model: str | None) -> int:
    """Run the flow `sample`, and return the number of prompts that can be ranked.

    Raises:
        AlignmentError: a setting is wrong, or a stage failed.
    """
    prepare_server()
    # Planning first reports mistakes before the run is recorded.
    plan_sampling(prepared(config), load_registry(), model)
    with recorded_run():
        from alignment_flows.sampling import sample

        kept: int = sample(config, model, return_state=True).result(raise_on_failure=True)
    return kept
