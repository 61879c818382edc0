"""A small random model of every causal language model that the installed transformers has, from its configuration."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

SMALL: dict[str, Any] = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "emb_dim", "word_embed_proj_dim", "lru_width"], 32),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"], 48),
    **dict.fromkeys(["num_hidden_layers", "num_layers", "n_layer", "n_layers"], 4),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "attention_heads", "mamba_n_heads"], 4),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx"], 128),
    **dict.fromkeys(["initializer_range", "init_std"], 0.2),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "num_experts_per_token", "num_key_value_heads"], 2),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"], 16),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank", "index_head_dim"], 16),
    **dict.fromkeys(["qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "head_dim", "rotary_dim"], 8),
    **dict.fromkeys(["n_group", "topk_group", "first_k_dense_replace", "n_shared_experts", "mamba_n_groups"], 1),
    **dict.fromkeys(["sliding_window", "attention_chunk_size", "index_topk", "window_size"], 12),
    **dict.fromkeys(["attention_window_size", "sliding_window_size", "local_attention"], 12),
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim", "mamba_d_state", "ssm_state_size"], 8),
    **dict.fromkeys(["state_size", "mamba_d_head", "mamba_head_dim", "mamba_num_heads", "laurel_rank"], 8),
    **dict.fromkeys(["hidden_size_per_layer_input", "query_pre_attn_scalar", "global_head_dim"], 8),
    **dict.fromkeys(["mamba_chunk_size", "chunk_size", "linear_num_value_heads"], 4),
    **dict.fromkeys(["vocab_size", "vocab_size_per_layer_input"], 256),
    "mamba_n_heads": 8, "mamba_d_ssm": 64, "n_groups": 1, "linear_num_key_heads": 2, "num_kv_shared_layers": 1,
    "attention_hidden_size": 32, "num_global_key_value_heads": 1, "index_n_heads": 2, "is_decoder": True,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
MLA: dict[str, Any] = {"num_key_value_heads": 4}
TWICE: dict[str, Any] = {"attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4}
GEMMA4: dict[str, Any] = {"head_dim": 8, "global_head_dim": 16, "num_kv_shared_layers": 0}
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_heads": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "gemma4_text": GEMMA4,
    "gemma4_unified_text": GEMMA4,
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 12,
        "indexer_compress_ratio": 4,
    },
    "recurrent_gemma": {"num_key_value_heads": 1, "w_init_variance_scale": 1.0, "tie_word_embeddings": True},
    "xmod": {"default_language": "en_XX"},
    "zamba": TWICE,
    "zamba2": TWICE | {"layer_types": ["mamba", "hybrid"] * 2, "hybrid_layer_ids": [1, 3]},
    "zaya": {"num_experts_per_tok": 1},
}
"""Settings that an architecture needs beside `SMALL`."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3 longrope": ("phi3", {
        "original_max_position_embeddings": 24, "max_position_embeddings": 2048, "sliding_window": None,
        "rope_parameters": {
            "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0, 6.0, 9.0, 12.0],
            "rope_theta": 10000.0, "original_max_position_embeddings": 24,
        },
    }),
    "llama yarn": ("llama", {
        "rope_parameters": {
            "rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 32,
        },
    }),
    "llama dynamic": ("llama", {
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    }),
}  # fmt: skip
"""Models of an architecture with another kind of positions."""
ENCODER_DECODER = (
    "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet trocr whisper"
)
OTHER_MEDIA = (
    "blt emu3 fuyu gemma3 gemma3n gemma4 gemma4_assistant gemma4_unified gemma4_unified_assistant git got_ocr2 llama4"
    " mllama moshi moss_transcribe_diarize musicgen musicgen_melody phi4_multimodal qwen3_5 qwen3_5_moe dots3_note"
)
UNTRIED = {
    **dict.fromkeys(ENCODER_DECODER.split(), "the decoder of an encoder-decoder"),
    **dict.fromkeys(OTHER_MEDIA.split(), "reads other media, bytes or other models' states"),
    **dict.fromkeys(
        ["cohere_compass_text", "dbrx", "dots3_note_text", "qwen4_exp", "xlstm"], "transformers runs no small one"
    ),
    **dict.fromkeys(["xlm", "xlnet", "reformer", "cpmant"], "not a causal model of one row of tokens"),
}
"""Architectures that are no language models of text alone, by type, with the reason."""
LANGUAGE_MODELS = tuple(kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind not in UNTRIED)
FEW = (
    "qwen3_moe", "mixtral", "qwen3_next", "gemma4_text", "gpt_oss", "deepseek_v3", "phimoe", "phi3 longrope",
    "falcon_h1", "granitemoehybrid",
)  # fmt: skip
"""Those that the tier `ci` tries: mixtures, hybrids and unusual positions."""


def small_config(name: str, vocabulary: int = 256) -> Any:
    """Return the configuration of a small model of this type or variant.

    Settings that the type does not have, or that it derives from others, are left out.
    """
    kind, changes = VARIANTS.get(name, (name, OWN.get(name, {})))
    make = CONFIG_MAPPING[kind]
    usual = make()
    settings = {key: value for key, value in SMALL.items() if _has(usual, key)}
    settings |= {key: vocabulary for key in settings if key.startswith("vocab_size")}
    if "kv_lora_rank" in settings:
        settings |= MLA
    types = vars(usual).get("layer_types")
    if isinstance(types, list):
        kinds = list(dict.fromkeys(types))
        settings["layer_types"] = (kinds * 4)[: max(4, len(kinds))]
        settings["num_hidden_layers"] = len(settings["layer_types"])
    return make(**(settings | changes))


def _has(config: Any, name: str) -> bool:
    if isinstance(found := getattr(type(config), name, None), property):
        return found.fset is not None
    return name in {field.name for field in fields(config)} or name in vars(config) or name in config.attribute_map


def save_small(name: str, folder: Path, vocabulary: int = 256) -> Path:
    """Save a small random model of this type or variant in Hugging Face format."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(small_config(name, vocabulary))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    # Biases and norms start at 0 and 1, which would hide an omission.
                    parameter += 0.1 * torch.randn(parameter.shape)
    model.generation_config = transformers.GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    return folder
