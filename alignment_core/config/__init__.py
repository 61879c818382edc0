"""The settings of a run: frozen and typed, with every default in this package.

The docstring under a field is its description in the Prefect run form, in `align plugins list` and in the docs.
"""

from alignment_core.config.base import Fraction, LoadIn, Moments, Settings, Supervision
from alignment_core.config.data import DataConfig, SourceConfig
from alignment_core.config.evaluation import (
    ChatEndpointSettings,
    EndpointConfig,
    EvaluationConfig,
    GateConfig,
    LmEvalConfig,
)
from alignment_core.config.feedback import ChatConfig, RetrainConfig
from alignment_core.config.model import ANOTHER_BASE, LoraConfig, ModelConfig
from alignment_core.config.pipeline import PipelineConfig
from alignment_core.config.sampling import RankConfig, SampleConfig, VllmConfig
from alignment_core.config.training import RewardConfig, SFTConfig, StepSettings

__all__ = [
    "ANOTHER_BASE",
    "ChatConfig",
    "ChatEndpointSettings",
    "DataConfig",
    "EndpointConfig",
    "EvaluationConfig",
    "Fraction",
    "GateConfig",
    "LmEvalConfig",
    "LoadIn",
    "LoraConfig",
    "ModelConfig",
    "Moments",
    "PipelineConfig",
    "RankConfig",
    "RetrainConfig",
    "RewardConfig",
    "SFTConfig",
    "SampleConfig",
    "Settings",
    "SourceConfig",
    "StepSettings",
    "Supervision",
    "VllmConfig",
]
