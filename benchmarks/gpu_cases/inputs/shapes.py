"""The models of the cases: configurations of public models, and tiny ones with the same architectures."""

from __future__ import annotations

from typing import Any

from public_models import MODELS

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
    "0.5B": MODELS["Qwen2.5-0.5B"],
    "1.5B": MODELS["Qwen2.5-1.5B"],
    "3B": MODELS["Llama-3.2-3B"],
    "8B": MODELS["Llama-3.1-8B"],
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
