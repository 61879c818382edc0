"""Several optimizers side by side: each trained on the same SFT model, reward model and data, and one report on all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.states import Failed

from alignment_core.config import PipelineConfig
from alignment_core.config_file import check_config
from alignment_core.errors import AlignmentError, ConfigError
from alignment_core.registry import load_registry
from alignment_core.stages.base import StageCall
from alignment_core.stages.build import leased
from alignment_core.stages.plan import Plan, make_plan
from alignment_flows.comparison import Comparison, Contender, compared
from alignment_flows.comparison_page import markdown, write_comparison
from alignment_flows.form import PipelineForm, run_name, settings_of
from alignment_flows.pipeline import pipeline
from alignment_flows.progress import if_server_answers
from alignment_flows.tasks import Stages, told_in_words

FOLDER = Path("comparison")


@flow(name="compare", flow_run_name=run_name, persist_result=False, validate_parameters=False)
@told_in_words
def compare(
    config: PipelineForm, optimizers: Sequence[str], changes: Sequence[str] = (), folder: Path = FOLDER
) -> Comparison:
    """Train with several optimizers on the same SFT model, reward model and data, and write one report on all.

    Args:
        config: The settings of the run; its optimizer's own settings count for that optimizer alone.
        optimizers: Names of installed optimizers.
        changes: Settings to change, for all (`seed=1`) or for one optimizer (`kto.learning_rate=1e-4`).
        folder: Folder of the report, on the machine that runs this.
    """
    plans = plans_of(settings_of(config, ()), optimizers, changes)
    with leased([call for plan in plans.values() for call in plan.calls().values()]):
        comparison = side_by_side(Stages(), plans)
    write_comparison(comparison, Path(folder))
    with if_server_answers():
        create_markdown_artifact(markdown(comparison), key="comparison", description=f"{', '.join(plans)} side by side")
    if failed := [contender for contender in comparison.contenders if contender.error]:
        words = "; ".join(f"{contender.name}: {contender.error}" for contender in failed)
        # Prefect takes a returned state for the run's own; the report on the others goes with it.
        return Failed(message=words, data=comparison)  # type: ignore[return-value]
    return comparison


def plans_of(config: PipelineConfig, optimizers: Sequence[str], changes: Sequence[str]) -> dict[str, Plan]:
    """The plan of each optimizer by its name.

    Raises:
        ConfigError, PluginError: an unknown or repeated optimizer, or a mistake in the settings; nothing is built yet.
    """
    if not optimizers or len(set(optimizers)) != len(optimizers):
        raise ConfigError("name each optimizer once", where="--optimizers", got=", ".join(optimizers) or "none")
    registry = load_registry()
    settings = {name: settings_for(config, name, optimizers, changes) for name in optimizers}
    return {name: make_plan(each, registry) for name, each in settings.items()}


def settings_for(
    config: PipelineConfig, name: str, optimizers: Sequence[str], changes: Sequence[str]
) -> PipelineConfig:
    """The settings with one of the optimizers: its own from the file where the file chooses it, else its defaults.

    Where one of them needs a reward model, it scores the responses of all.
    """
    own = [] if config.optimizer.get("name") == name else [f"optimizer={{name: {name}}}"]
    registry = load_registry()
    if any(registry.optimizer_class(other).reward_model for other in optimizers):
        own.append("evaluation.reward_model=true")
    for change in changes:
        first, dot, rest = change.partition(".")
        if not (dot and first in optimizers):
            own.append(change)
        elif first == name:
            own.append(f"optimizer.{rest}")
    return check_config(config.model_dump(mode="json"), own)


def side_by_side(stage: Stages, plans: Mapping[str, Plan]) -> Comparison:
    """Run every plan; one that fails does not keep the others from running."""
    contenders = []
    for name, plan in plans.items():
        error: AlignmentError | None = None
        try:
            pipeline(stage, plan)
        except AlignmentError as caught:
            error = caught
        contenders.append(Contender(name, plan.optimize.config["optimizer"], _built(stage, plan), error))
    return compared(contenders)


def _built(stage: Stages, plan: Plan) -> dict[str, Any]:
    """What came of a plan, by the names of the plan, as far as it came."""
    calls: dict[str, StageCall] = plan.calls()
    return {name: stage.built(call) for name, call in calls.items() if stage.has_built(call)}
