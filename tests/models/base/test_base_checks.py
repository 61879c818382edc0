"""What a base model must have for the settings of a run is checked from its files alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from classifiers import edit_json

from alignment_core.errors import ModelError
from alignment_core.models.base.base_checks import (
    check_files,
    check_no_adapter,
    check_positions,
    check_precision,
    positions_made_for,
    rows_to_add,
)
from alignment_core.models.base.identity import ModelIdentity

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> ModelIdentity:
    """Return a copy of the tiny model: 320 tokens at most, with as many rows."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    return ModelIdentity("model", str(folder), None, weights="", tokenizer="")


def change(model: ModelIdentity, file: str = "config.json", **fields: Any) -> None:
    edit_json(Path(model.path) / file, **fields)


@pytest.mark.parametrize(
    ("found", "load_in", "advice"),
    [
        (NF4, "nf4", None),
        (NF4, "bf16", "Set `model.load_in: nf4`"),
        (NF4 | {"bnb_4bit_quant_type": "fp4"}, "nf4", "Name the model in 16 bits"),
        ({"load_in_8bit": True}, "int8", None),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "nf4", "Set `model.load_in: int8`"),
        ({"quant_method": "gptq", "bits": 4}, "nf4", "Name the model in 16 bits"),
        ({"quant_method": "mxfp4"}, "bf16", "Name the model in 16 bits"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_quantized_model_needs_its_own_precision(
    model: ModelIdentity, found: dict[str, Any], load_in: str, advice: str | None, nested: bool
) -> None:
    change(model, **({"text_config": {"quantization_config": found}} if nested else {"quantization_config": found}))
    if advice is None:
        check_precision(model, load_in, "model.base")
        return
    with pytest.raises(ModelError, match=f"quantized already.*`load_in: {load_in}` would have no effect.*{advice}"):
        check_precision(model, load_in, "model.base")


def test_other_models_take_every_precision(model: ModelIdentity) -> None:
    for load_in in ("nf4", "int8", "bf16", "fp32"):
        check_precision(model, load_in, "model.base")


@pytest.mark.parametrize(
    ("kind", "length", "response", "problem"),
    [
        ({"model_type": "gpt2", "n_positions": 64}, 64, 16, None),
        ({"model_type": "gpt2", "n_positions": 64}, 65, 1, r"has 64 positions.*rows of 65 tokens.*to 64 or less"),
        # A prompt may take 48 of 64 tokens: 48 + 17 = 65.
        ({"model_type": "gpt2", "n_positions": 64}, 64, 17, r"needs 65.*`evaluation.max_new_tokens` to 16 or less"),
        ({"model_type": "opt", "max_position_embeddings": 64}, 256, 1, r"has 64 positions.*rows of 256 tokens"),
        ({"model_type": "llama", "max_position_embeddings": 64}, 256, 999, None),  # computes its positions
    ],
)
def test_table_of_positions(
    model: ModelIdentity, kind: dict[str, Any], length: int, response: int, problem: str | None
) -> None:
    (Path(model.path) / "config.json").write_text(json.dumps(kind))
    if problem is None:
        check_positions(model, length, {"evaluation.max_new_tokens": response}, "model.base")
        return
    with pytest.raises(ModelError, match=problem):
        check_positions(model, length, {"evaluation.max_new_tokens": response}, "model.base")


def test_model_without_adapter_passes_and_one_with_an_adapter_must_be_named(model: ModelIdentity) -> None:
    check_no_adapter(model, "model.base")
    (Path(model.path) / "adapter_config.json").write_text("{}")
    check_no_adapter(model, "model.base", adapter="elsewhere")
    with pytest.raises(ModelError, match=f"Set `model.adapter: {model.path}`"):
        check_no_adapter(model, "model.base")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"PK\x03\x04 a zip file, and more", "not a safetensors file"),
        (b"", "not a safetensors file"),
    ],
)
def test_files_that_are_not_weights(model: ModelIdentity, content: bytes, problem: str) -> None:
    check_files(model, "model.base")
    (Path(model.path) / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=problem):
        check_files(model, "model.base")


def test_half_downloaded_weights(model: ModelIdentity) -> None:
    file = Path(model.path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelError, match=rf"not complete.*with {file.stat().st_size} bytes"):
        check_files(model, "model.base")


def test_missing_shard(model: ModelIdentity) -> None:
    shards = {"a": "model-1.safetensors", "b": "model.safetensors"}
    (Path(model.path) / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ModelError, match=r"no model-1\.safetensors .* \(1 of 2 are missing\)"):
        check_files(model, "model.base")


def with_tokens(model: ModelIdentity, *tokens: str) -> int:
    """Add tokens to the tokenizer. Return the number of rows of the embedding."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.path)
    rows = len(tokenizer)
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    tokenizer.save_pretrained(model.path)
    return rows


def test_tokens_without_rows(model: ModelIdentity) -> None:
    assert rows_to_add(model, None, "model.base", resize=False) is None
    rows = with_tokens(model, "<|a|>", "<|b|>")
    with pytest.raises(ModelError, match=rf"has {rows + 2} tokens.*has {rows} rows.*no row for <\|a\|>, <\|b\|>"):
        rows_to_add(model, None, "model.base", resize=False)
    assert rows_to_add(model, None, "model.base", resize=True) == rows + 2
    change(model, vocab_size=rows + 2)
    assert rows_to_add(model, None, "model.base", resize=False) is None


def test_words_of_the_vocabulary_without_rows(model: ModelIdentity) -> None:
    change(model, vocab_size=100)
    with pytest.raises(ModelError, match="has 100 rows"):
        rows_to_add(model, None, "model.base", resize=False)


def test_token_that_may_become_padding_needs_a_row(model: ModelIdentity) -> None:
    with_tokens(model, "<|image_pad|>")
    with pytest.raises(ModelError, match="image_pad"):
        rows_to_add(model, None, "model.base", resize=False)


def test_tokens_for_images_need_no_rows_unless_the_template_writes_them(model: ModelIdentity) -> None:
    with_tokens(model, "<image_soft_token>")  # as in Gemma 3 for text
    assert rows_to_add(model, None, "model.base", resize=False) is None
    with pytest.raises(ModelError, match="image_soft_token"):
        rows_to_add(model, "{{ '<image_soft_token>' }}", "model.base", resize=False)


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"text_config": {"max_position_embeddings": 64}}, 64),
        # YaRN and linear scaling extend the positions; a factor of the base frequency does not.
        ({"max_position_embeddings": 512, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 2048),
        ({"max_position_embeddings": 512, "rope_parameters": {"rope_theta": 10000.0}}, 512),
        ({"alibi": True}, None),
    ],
)
def test_positions_that_a_model_was_made_for(
    model: ModelIdentity, config: dict[str, Any], positions: int | None
) -> None:
    (Path(model.path) / "config.json").write_text(json.dumps(config))
    assert positions_made_for(model) == positions
