"""Shapes of public models, from their `config.json` on the Hub. The weights are never needed."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

QWEN: dict[str, Any] = {
    "model_type": "qwen2", "vocab_size": 151936, "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 131072,
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip


def _llama_3_rope(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


MODELS: dict[str, dict[str, Any]] = {
    "Qwen2.5-0.5B": QWEN | {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    },
    "Qwen2.5-1.5B": QWEN | {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    },
    "Llama-3.2-3B": LLAMA | {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
        "rope_parameters": _llama_3_rope(32.0), "tie_word_embeddings": True,
    },
    "Llama-3.1-8B": LLAMA | {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "rope_parameters": _llama_3_rope(8.0), "tie_word_embeddings": False,
    },
}  # fmt: skip


def public_config(name: str) -> PretrainedConfig:
    """Return the configuration of one of these models."""
    shape = dict(MODELS[name])
    return AutoConfig.for_model(shape.pop("model_type"), name_or_path=name, **shape)
