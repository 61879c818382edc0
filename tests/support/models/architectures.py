"""Tiny random models of many architectures, saved in Hugging Face format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

COMMON: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
DENSE = {name: value for name, value in COMMON.items() if name != "num_key_value_heads"}
GPT2: dict[str, Any] = {"vocab_size": 256, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4}
OPT: dict[str, Any] = {
    name: value for name, value in DENSE.items() if name not in ("intermediate_size", "initializer_range")
}

NOT_SEPARABLE = ("bert", "recurrent gemma", "hyperclovax")
"""Architectures whose logits need more than their head."""

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", COMMON),
    "llama tied": ("Llama", COMMON | {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", COMMON),
    "qwen3": ("Qwen3", COMMON | {"head_dim": 8}),
    "gemma": ("Gemma", COMMON | {"head_dim": 8, "tie_word_embeddings": True}),
    # Both soft caps, and a window that these sequences exceed.
    "gemma2": (
        "Gemma2",
        COMMON
        | {
            "head_dim": 8,
            "sliding_window": 6,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 8,
            "tie_word_embeddings": True,
        },
    ),
    "mistral": ("Mistral", COMMON | {"sliding_window": 6}),
    "phi3": ("Phi3", COMMON | {"resid_pdrop": 0.1, "embd_pdrop": 0.1}),
    # A bias in the output head.
    "phi": ("Phi", DENSE | {"resid_pdrop": 0.1}),
    # Dropout 0.1 by default, tied, Conv1D instead of linear layers, learned positions.
    "gpt2": ("GPT2", GPT2 | {"initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}),
    # Dropout inside the layer itself rather than in a separate module.
    "opt": ("OPT", OPT | {"ffn_dim": 48, "dropout": 0.1, "init_std": 0.2, "word_embed_proj_dim": 32}),
    # More than a head between the last hidden state and the logits: a dense layer, a norm and a bias.
    "bert": (
        "Bert",
        DENSE | {"is_decoder": True, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    ),
    # A recurrent state that padding changes, and a soft cap under another name than in Gemma 2.
    "recurrent gemma": (
        "RecurrentGemma",
        COMMON
        | {
            "num_key_value_heads": 1,
            "num_hidden_layers": 3,
            "head_dim": 8,
            "lru_width": 32,
            "attention_window_size": 64,
            "logits_soft_cap": 3.0,
            "w_init_variance_scale": 1.0,
            "tie_word_embeddings": True,
        },
    ),
    # Its factor has the same name as Granite's, but multiplies instead of dividing.
    "hyperclovax": ("HyperCLOVAX", COMMON | {"logits_scaling": 4.0}),
    "cohere": ("Cohere", COMMON | {"logit_scale": 0.25}),
    "granite": ("Granite", COMMON | {"logits_scaling": 4.0}),
}

HYBRID = COMMON | {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 4,
}
RECURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm2": ("Lfm2", COMMON | {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}),
    "qwen3 next": (
        "Qwen3Next",
        COMMON
        | {
            "head_dim": 8,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "granite hybrid": (
        "GraniteMoeHybrid",
        HYBRID
        | {
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "shared_intermediate_size": 16,
        },
    ),
    # No attention, keys or values, and another name for its cache.
    "mamba": ("Mamba", {"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    # Does not accept transformers' cache classes.
    "rwkv": (
        "Rwkv",
        {
            "vocab_size": 256,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "attention_hidden_size": 32,
            "intermediate_size": 48,
        },
    ),
}
"""Architectures with more state than keys and values."""


def save_model(name: str, folder: Path, **changes: Any) -> Path:
    """Save a random model of this architecture in Hugging Face format."""
    kind, settings = (ARCHITECTURES | RECURRENT)[name]
    config = getattr(transformers, f"{kind}Config")(**(settings | changes))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    # Biases and norms start at 0 and 1, which would hide an omission.
                    parameter += 0.1 * torch.randn(parameter.shape)
    model.generation_config = transformers.GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    return folder
