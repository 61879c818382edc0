"""The flow `compare`: train several optimizers on the same SFT model, reward model and data, and write one report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.states import Failed

from alignment_core.config import PipelineConfig
from alignment_core.config_file import check_config
from alignment_core.errors import AlignmentError, ConfigError
from alignment_core.execution.stage import StageCall
from alignment_core.planning.pipeline import Plan, plan_pipeline
from alignment_core.planning.reward_parts import uses_reward_model
from alignment_core.planning.unpacked_base import base_of_run
from alignment_core.registry import load_registry
from alignment_flows.form.parameters import secret_flow
from alignment_flows.form.settings import PipelineForm, read_settings, run_name
from alignment_flows.pipeline import pipeline, read_data
from alignment_flows.progress import tolerate_server_outage
from alignment_flows.reports.comparison import Comparison, OptimizerRun, compare_results
from alignment_flows.reports.comparison_page import markdown, write_comparison
from alignment_flows.tasks import StageRunner, planned, without_traceback

FOLDER = Path("comparison")


@secret_flow(name="compare", flow_run_name=run_name, persist_result=False, validate_parameters=False)
@without_traceback
def compare(
    config: PipelineForm, optimizers: Sequence[str], changes: Sequence[str] = (), folder: Path = FOLDER
) -> Comparison:
    """Train several optimizers on the same SFT model, reward model and data, and write one report.

    Args:
        config: The settings of the run. The settings under `optimizer` apply only to the optimizer that they name.
        optimizers: Names of the optimizers to compare.
        changes: Settings to override, for all optimizers (`seed=1`) or for one (`kto.learning_rate=1e-4`).
        folder: Folder for the report, on the machine that runs the flow.
    """
    stage, settings = StageRunner(), settings_of(read_settings(config, ()), optimizers, changes)
    for each in settings.values():
        stage(base_of_run(each))
    plans = plans_of(settings)
    with planned([call for plan in plans.values() for call in plan.calls().values()]):
        for plan in plans.values():
            read_data(stage, plan)  # so that nothing is trained if one of them lacks data
        comparison = side_by_side(stage, plans)
    write_comparison(comparison, Path(folder))
    with tolerate_server_outage():
        create_markdown_artifact(markdown(comparison), key="comparison", description=f"{', '.join(plans)} side by side")
    if failed := [run for run in comparison.runs if run.error]:
        message = "; ".join(f"{run.name}: {run.error}" for run in failed)
        # Prefect uses a returned state as the final state of the run. It carries the report on the other optimizers.
        return Failed(message=message, data=comparison)  # type: ignore[return-value]
    return comparison


def settings_of(config: PipelineConfig, optimizers: Sequence[str], changes: Sequence[str]) -> dict[str, PipelineConfig]:
    """Return the settings for each optimizer by its name.

    Raises:
        ConfigError, PluginError: an optimizer is unknown or repeated, or a setting is wrong. Nothing has been built.
    """
    if not optimizers or len(set(optimizers)) != len(optimizers):
        raise ConfigError(
            "an optimizer is repeated" if optimizers else "no optimizer is given",
            where="--optimizers",
            got=", ".join(optimizers) or "none",
            do="Name each optimizer once",
        )
    return {name: settings_for(config, name, optimizers, changes) for name in optimizers}


def plans_of(settings: Mapping[str, PipelineConfig]) -> dict[str, Plan]:
    """Return the plan of each optimizer by its name.

    Raises:
        AlignmentError: a mistake of the user. Nothing has been built.
    """
    registry = load_registry()
    return {name: plan_pipeline(each, registry) for name, each in settings.items()}


def settings_for(
    config: PipelineConfig, name: str, optimizers: Sequence[str], changes: Sequence[str]
) -> PipelineConfig:
    """Return the settings for one optimizer: those in the config file if the file chooses it, else its defaults.

    If the reward model rewards the responses of any optimizer, it scores the responses of all optimizers.
    """
    registry = load_registry()
    chosen = {each: _with_own_settings(config, each, optimizers, changes) for each in optimizers}
    by_model = (each for each in chosen.values() if uses_reward_model(each.reward.by))
    if not any(registry.optimizer(each.optimizer).needs().reward for each in by_model):
        return chosen[name]
    return _with_own_settings(config, name, optimizers, ["evaluation.reward_model=true", *changes])


def _with_own_settings(
    config: PipelineConfig, name: str, optimizers: Sequence[str], changes: Sequence[str]
) -> PipelineConfig:
    """Return the settings with this optimizer, and with those changes that are for it or for every optimizer."""
    own = [] if config.optimizer.get("name") == name else [f"optimizer={{name: {name}}}"]
    for change in changes:
        first, dot, rest = change.partition(".")
        if not (dot and first in optimizers):
            own.append(change)
        elif first == name:
            own.append(f"optimizer.{rest}")
    given = config.model_dump(mode="json")
    return check_config(given, own)


def side_by_side(stage: StageRunner, plans: Mapping[str, Plan]) -> Comparison:
    """Run every plan, even if another one fails, and return the comparison."""
    runs = []
    for name, plan in plans.items():
        error: AlignmentError | None = None
        try:
            pipeline(stage, plan)
        except AlignmentError as caught:
            error = caught
        runs.append(OptimizerRun(name, plan.optimize.config["optimizer"], _built(stage, plan), error))
    return compare_results(runs)


def _built(stage: StageRunner, plan: Plan) -> dict[str, Any]:
    """Return the stages of a plan that were built, by their names in the plan."""
    calls: dict[str, StageCall] = plan.calls()
    return {name: stage.built(call) for name, call in calls.items() if stage.has_built(call)}
