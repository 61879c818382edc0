"""Plan the stage calls that sample responses for raters to rank."""

from __future__ import annotations

from dataclasses import dataclass

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.layout import check_store
from alignment_core.artifacts.models import find_model
from alignment_core.config import PipelineConfig, SampleConfig
from alignment_core.execution.stage import StageCall
from alignment_core.feedback.data_source import pin_data
from alignment_core.planning.stage_calls import StageCalls
from alignment_core.registry import Registry


@dataclass(frozen=True)
class SamplePlan:
    """The calls, and the key of the sampled model.

    For a base model without an adapter, the key is the digest of its weights.
    """

    ingest: StageCall
    adapter: StageCall | None
    sft: StageCall | None
    sample: StageCall
    model: str

    def calls(self) -> list[StageCall]:
        """Return every call, parents before children."""
        return [call for call in (self.ingest, self.adapter, self.sft, self.sample) if call is not None]


def plan_sampling(config: PipelineConfig, registry: Registry, model: str | None = None) -> SamplePlan:
    """Plan the calls that sample responses.

    Args:
        config: the settings of a run. If `sample` is null, its defaults are used.
        registry: the installed plugins.
        model: the model to sample from: an alias, the name of a run, a key, a prefix of a key, or `latest` for the
            newest aligned model of the run with this name. None: the SFT model of these settings.

    Raises:
        ConfigError, DataError, ModelError: a mistake of the user, found before anything is built.
        ArtifactError: the model does not exist, or the store cannot be used.
    """
    calls = StageCalls.from_config(config, registry)
    ingest = calls.ingest(pin_data(config.data))
    standing = {} if model is None else {"policy": _model(config, calls, model)}
    adapter = calls.adapter() if model is None else None
    sft = calls.sft(ingest, adapter) if model is None else None
    start = sft or adapter
    settings = (config.sample or SampleConfig()).to_stage(config.model.max_length)
    calls.check_positions({"sample.max_new_tokens": settings["max_new_tokens"]})
    loads = calls.model_settings(seed=config.seed, sample=settings, **calls.sampled())
    inputs = calls.sampled_at()
    sample = calls.call("sample", loads, {"data": ingest, "sft": start}, inputs=inputs, standing=standing)
    sampled = standing.get("policy") or (start.key if start else calls.model.weights)
    plan = SamplePlan(ingest, adapter, sft, sample, sampled)
    check_store(config.store.absolute(), [(call.stage, call.key) for call in plan.calls()])
    return plan


def _model(config: PipelineConfig, calls: StageCalls, reference: str) -> str:
    model = find_model(ArtifactStore(config.store, config.remote), reference, run=config.name)
    calls.check_same_base(model.entry.artifact)
    return model.key
