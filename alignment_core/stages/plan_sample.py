"""The stage calls that make responses for people to rank."""

from __future__ import annotations

from dataclasses import dataclass

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.catalogue import PROMOTABLE, resolve
from alignment_core.config import PipelineConfig, SampleConfig
from alignment_core.feedback.source import pinned_data
from alignment_core.registry import Registry
from alignment_core.stages.base import StageCall
from alignment_core.stages.calls import Calls


@dataclass(frozen=True)
class SamplePlan:
    """The calls, and the key of the model that answers: an artifact's, or the base model's own where there is none."""

    ingest: StageCall
    sft: StageCall | None
    sample: StageCall
    model: str

    def calls(self) -> list[StageCall]:
        """Every call, parents before children."""
        return [call for call in (self.ingest, self.sft, self.sample) if call is not None]


def make_sample_plan(config: PipelineConfig, registry: Registry, model: str | None = None) -> SamplePlan:
    """Decide them.

    Args:
        config: the settings of a run; where `sample` is null its defaults are taken.
        registry: the installed plugins.
        model: an alias, a key or the beginning of one: who answers; None: the SFT model of these settings.

    Raises:
        ConfigError, DataError, ModelError: whatever the user got wrong, before anything is built.
        ArtifactError: there is no such model.
    """
    calls = Calls.of(config, registry)
    ingest = calls.ingest(pinned_data(config.data))
    standing = {} if model is None else {"policy": _model(config, calls, model)}
    sft = calls.sft(ingest) if model is None else None
    settings = (config.sample or SampleConfig()).model_dump(mode="json")
    loads = calls.loads(seed=config.seed, sample=settings)
    sample = calls.call("sample", loads, {"data": ingest, "sft": sft}, standing=standing)
    return SamplePlan(ingest, sft, sample, standing.get("policy") or (sft.key if sft else calls.model.weights))


def _model(config: PipelineConfig, calls: Calls, reference: str) -> str:
    entry = resolve(ArtifactStore(config.store), reference, PROMOTABLE)
    calls.refuse_other_base(entry.artifact)
    return entry.artifact.key
