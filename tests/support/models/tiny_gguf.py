"""Write the tiny Llama of the tests as a GGUF file, as llama.cpp's converter would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

CHAT = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token }}{% endfor %}"
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def needs_gguf() -> None:
    """Skip the test if the package `gguf` is not installed."""
    pytest.importorskip("gguf", reason="needs the package gguf, which the extra `smollm2` installs")


def write_gguf(model: Path, path: Path, quantization: str = "F32", **fields: Any) -> Path:
    """Write a Llama folder as a GGUF file and return its path.

    Args:
        model: the folder, with a byte-level BPE tokenizer.
        path: the new file.
        quantization: type of the matrices. Vectors are always F32.
        fields: metadata to add, with `__` for dots.
    """
    import gguf
    from safetensors.torch import load_file

    config = json.loads((model / "config.json").read_text())
    kind = gguf.GGMLQuantizationType[quantization]
    writer = gguf.GGUFWriter(path, fields.pop("architecture", "llama"))
    writer.add_name("Tiny Llama of the tests")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type({"F32": 0, "Q8_0": 7}[quantization])
    _add_tokenizer(writer, model)
    for name, value in fields.items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_string
        add(name.replace("__", "."), value)
    for name, tensor in load_file(model / "model.safetensors").items():
        array = _as_in_llama_cpp(name, tensor.float().numpy(), config)
        if array.ndim == 1 or quantization == "F32":
            writer.add_tensor(_gguf_name(name), array)
        else:
            writer.add_tensor(_gguf_name(name), gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: Any, model: Path) -> None:
    bpe = json.loads((model / "tokenizer.json").read_text())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if number < 3 else 1 for number in range(len(tokens))])  # 3: control, 1: normal
    writer.add_token_merges([" ".join(merge) for merge in bpe["merges"]])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT)


def _as_in_llama_cpp(name: str, array: Any, config: dict[str, Any]) -> Any:
    """Return a tensor as llama.cpp orders it: the two halves of each head's rotary dimensions interleaved."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    count = next((count for part, count in heads.items() if part in name), None)
    if count is None:
        return array
    halves = array.reshape(count, 2, array.shape[0] // count // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape).copy()


def _gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in TOP:
        return f"{TOP[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"
