"""A run before it starts: what is in the store already, and what the rest needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignment_core.advice import advise
from alignment_core.artifacts import Artifact, ArtifactStore
from alignment_core.artifacts.sharing import sizes_in_remote
from alignment_core.config import PipelineConfig
from alignment_core.execution.stage import StageCall
from alignment_core.forecast.predict import check_memory_of, predict
from alignment_core.forecast.predictions import Forecast, check_memory
from alignment_core.planning.pipeline import Plan
from alignment_core.planning.unpacked_base import BASE, base_of_run
from alignment_core.plugin_api import Advice
from alignment_core.registry import load_registry


@dataclass(frozen=True)
class PlannedRun:
    """A run before it starts.

    Attributes:
        settings: the settings of the run.
        calls: the stages by name, parents before children.
        found: the artifact of each stage that is already in the store, otherwise None.
        pulled: the size in bytes of each artifact that would be pulled from the remote, by stage.
        forecast: the predicted memory and time of the stages that would be built.
    """

    settings: PipelineConfig
    calls: Mapping[str, StageCall]
    found: Mapping[str, Artifact | None]
    pulled: Mapping[str, int]
    forecast: Forecast

    @property
    def to_build(self) -> list[str]:
        """Names of the stages that would be built."""
        return [name for name, artifact in self.found.items() if artifact is None and name not in self.pulled]

    def advice(self) -> list[Advice]:
        """Return what the data and the settings give reason to change before anything is trained."""
        forecast, optimize = self.forecast, self.calls["optimize"]
        metrics: dict[str, dict[str, Any]] = {
            name: artifact.manifest().metrics for name, artifact in self.found.items() if artifact is not None
        }
        metrics.setdefault("ingest", {"rows": {"held_out": forecast.held_out}, "raters": forecast.raters})
        prompts = min(self.settings.evaluation.max_prompts, forecast.held_out["prompts"])
        metrics.setdefault("evaluate", {"prompts": prompts})
        if not self.calls["over_sft"].config["judges"]:
            metrics.setdefault("over_sft", {"win_rate": {}})
        if (predicted := forecast.stages.get("optimize")) is not None:
            metrics["optimize"] = {"steps": predicted.steps}
        return advise(metrics, load_registry().optimizer(optimize.config["optimizer"]))

    def check_memory(self) -> None:
        """Check that every stage fits into the available memory.

        Raises:
            TrainingError: a stage does not fit. The message says what to change.
        """
        check_memory(self.forecast.stages, self.forecast.device, self.calls)


def planned_run(settings: PipelineConfig, made: Plan, card: float | None = None) -> PlannedRun:
    """Look up the stages of a plan in the store, and predict those that are missing.

    Args:
        settings: the settings of the run.
        made: its plan.
        card: as for `predict`.
    """
    calls, store = made.calls(), ArtifactStore(settings.store, settings.remote)
    found = {name: store.find(call.key) for name, call in calls.items()}
    missing = {name: calls[name].key for name, artifact in found.items() if artifact is None}
    pulled = sizes_in_remote(store, missing)
    forecast = predict(calls, [name for name in missing if name not in pulled], card)
    if (base := base_of_run(settings)) is not None:  # the plan has read it, so it has been unpacked
        calls, found = {BASE: base, **calls}, {BASE: store.find(base.key), **found}
    return PlannedRun(settings, calls, found, pulled, forecast)


def check_memory_of_all(plans: Mapping[str, Plan]) -> dict[str, str]:
    """Check that every stage that these plans lack fits into memory. A stage that several share is checked once.

    Args:
        plans: the plans by the names of their contenders. Data that are not in the store yet are read here, too.

    Returns:
        Why the stages of a contender could not be predicted, by its name. They will fail in the run, alone.

    Raises:
        TrainingError: a stage does not fit. The message says what to change.
    """
    seen: set[str] = set()
    to_check: dict[str, tuple[Mapping[str, StageCall], list[str]]] = {}
    for contender, plan in plans.items():
        calls = plan.calls()
        runtime = calls["optimize"].runtime
        store = ArtifactStore(runtime.store, runtime.remote)
        new = {name: call for name, call in calls.items() if call.key not in seen and call.runtime.pool is None}
        seen |= {call.key for call in new.values()}
        missing = {name: call.key for name, call in new.items() if store.find(call.key) is None}
        pulled = sizes_in_remote(store, missing)
        if names := [name for name in missing if name not in pulled]:
            to_check[contender] = (calls, names)
    failed = check_memory_of(list(to_check.values())) if to_check else []
    return {contender: why for contender, why in zip(to_check, failed, strict=True) if why is not None}
