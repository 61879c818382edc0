"""A run before it starts: what is in the store already, and what the rest needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignment_core.advice import advise
from alignment_core.artifacts import Artifact, ArtifactStore
from alignment_core.artifacts.sharing import sizes_in_remote
from alignment_core.config import PipelineConfig
from alignment_core.execution.stage import StageCall
from alignment_core.forecast.predict import predict
from alignment_core.forecast.predictions import Forecast, check_memory
from alignment_core.planning.pipeline import Plan
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
        if (predicted := forecast.stages.get("optimize")) is not None:
            metrics["optimize"] = {"steps": predicted.steps}
        return advise(metrics, load_registry().optimizer(optimize.config["optimizer"]))

    def check_memory(self) -> None:
        """Check that every stage fits into the available memory.

        Raises:
            TrainingError: a stage does not fit. The message says what to change.
        """
        check_memory(self.forecast, self.calls)


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
    return PlannedRun(settings, calls, found, pulled, forecast)
