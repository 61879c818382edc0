"""The models of the cases: configurations of public models, and tiny ones with the same architectures."""

from __future__ import annotations

from typing import Any

_LLAMA_3: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
}
_QWEN_25: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "tie_word_embeddings": True,
}


def _llama_3_rope(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


# The usual range of 0.02 gives almost uniform logits at this width, which would hide most mistakes.
_TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,
}

SHAPES: dict[str, dict[str, Any]] = {
    "0.5B": _QWEN_25
    | {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5B": _QWEN_25
    | {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    "3B": _LLAMA_3
    | {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "rope_parameters": _llama_3_rope(32.0),
        "tie_word_embeddings": True,
    },
    "8B": _LLAMA_3
    | {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "rope_parameters": _llama_3_rope(8.0),
        "tie_word_embeddings": False,
    },
    "tiny": _TINY | {"model_type": "llama", "tie_word_embeddings": False},
    "tiny-tied": _TINY | {"model_type": "qwen2", "tie_word_embeddings": True},
    "small": _TINY
    | {
        "model_type": "llama",
        "tie_word_embeddings": False,
        "vocab_size": 32_000,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "initializer_range": 0.02,
    },
}
"""Arguments of `AutoConfig.for_model` by size: Qwen2.5-0.5B and 1.5B, Llama-3.2-3B, Llama-3.1-8B, and small ones."""
