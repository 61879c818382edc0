"""Find the base model of the settings as a model that answers, before anything is trained."""

from __future__ import annotations

from alignment_core.config import PipelineConfig
from alignment_core.inference.model_parts import ModelParts, NamedModel
from alignment_core.planning.stage_calls import StageCalls
from alignment_core.planning.unpacked_base import BASE
from alignment_core.registry import Registry


def untouched_base(config: PipelineConfig, registry: Registry) -> NamedModel:
    """Return the base model of the settings, without an adapter, in the precision and with the template of a run.

    Args:
        config: the settings of a run. A GGUF file is in the store already.
        registry: the installed plugins.

    Raises:
        ConfigError, ModelError: the model does not exist, or cannot be used as the settings ask.
    """
    calls = StageCalls.from_config(config, registry)
    parts = ModelParts(place=calls.model.place(), config=calls.model_settings(), adapter=None)
    return NamedModel(calls.model.weights, f"{BASE}: {calls.model.name}", parts)
