"""Merged weights: values by hand, architectures and kinds of adapter, and faults that the parity check must find."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from every_architecture import save_small
from exported import Make
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment_core.data.rendering.builtin_templates import BUILTIN_TEMPLATES
from alignment_core.errors import ModelError
from alignment_core.export import tokenizer_files
from alignment_core.export.targets import merged
from alignment_core.models.roles import targets


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(("rslora", "scale"), [(False, 8 / 4), (True, 8 / 4**0.5)])
def test_merged_weight_is_base_plus_scaled_product_of_the_factors(
    trained: Make, tiny_model: Path, out: Path, rslora: bool, scale: float
) -> None:
    origin = trained(rslora=rslora)
    found = merged.write(origin, out)
    base, factors = load_file(tiny_model / "model.safetensors"), load_file(origin.folder / "adapter_model.safetensors")
    merged_weights = load_file(out / "model.safetensors")
    touched = 0
    for name, weight in merged_weights.items():
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        expected = base[name]
        if (down := factors.get(f"{layer}.lora_A.weight")) is not None:
            expected = expected + scale * factors[f"{layer}.lora_B.weight"] @ down
            touched += 1
        assert weight.dtype == torch.bfloat16
        # The base is float32, so the sum is rounded once, by at most half of bfloat16's last place: 2⁻⁸ of the value.
        assert torch.all((weight.float() - expected).abs() <= 2**-8 * expected.abs() + 1e-6), name
    assert touched == 14  # seven linear layers in each of two blocks
    assert found["dtype"] == "bfloat16"
    assert found["before_rounding"]["largest_difference"] < 1e-4
    assert found["before_rounding"]["largest_difference"] < found["after_rounding"]["largest_difference"]
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        ("gpt2", {}),  # Conv1D stores the weights transposed
        ("gpt2", {"dora": True}),
        ("llama tied", {"dora": True}),
        ("qwen2", {"rslora": True, "target_modules": ["q_proj", "down_proj"]}),
        ("gemma2", {}),
        ("phi3", {}),  # a single matrix for query, key and value
    ],
)
def test_every_kind_of_adapter_and_layer_passes_the_parity_check(
    trained: Make, architecture: Callable[..., Path], out: Path, name: str, lora: dict[str, Any]
) -> None:
    origin = trained(architecture(name), **lora)
    merged.write(origin, out)
    ids = torch.tensor([[5, 9, 40, 7, 100]])
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(origin.base)
        without = base(input_ids=ids).logits
        ours = PeftModel.from_pretrained(base, origin.folder)(input_ids=ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)(input_ids=ids).logits
    # The adapter moves the logits by far more than bfloat16 rounds them.
    assert (theirs - ours).abs().max() < 0.25 * (ours - without).abs().max()


def test_16_bit_base_keeps_its_dtype(trained: Make, architecture: Callable[..., Path], out: Path) -> None:
    folder = architecture("llama")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).save_pretrained(folder)
    assert merged.write(trained(folder), out)["dtype"] == "float16"
    assert all(weight.dtype == torch.float16 for weight in load_file(out / "model.safetensors").values())


def test_full_precision_base_is_merged_and_distance_to_the_quantized_base_is_reported(trained: Make, out: Path) -> None:
    found = merged.write(trained(load_in="nf4"), out)
    # 4 bits change the logits much more than 16 bits do. This is reported but is not an error.
    assert found["on_nf4_base"]["largest_logit_difference"] > found["after_rounding"]["largest_difference"]
    assert found["on_nf4_base"]["kl_per_token"] > 0


def test_quantized_checkpoint_is_refused(trained: Make, architecture: Callable[..., Path], out: Path) -> None:
    folder = architecture("llama")
    origin = trained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="there are no full-precision weights to merge into"):
        merged.write(origin, out)


def test_insufficient_memory_is_reported_before_the_base_is_loaded(
    trained: Make, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged, "available_memory", lambda device: 1000)
    monkeypatch.setattr(merged, "load_base", lambda *_, **__: pytest.fail("the base was loaded"))
    with pytest.raises(ModelError, match="does not fit"):
        merged.write(trained(), out)


def test_weights_that_transformers_reads_in_float32_are_not_rounded(trained: Make, tiny_model: Path, out: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    base = save_small("deepseek_v3", tiny_model.parent / "deepseek", len(tokenizer))
    tokenizer.save_pretrained(base)
    # A router's correction: bfloat16 has no number between 8 and 8.0625.
    name, correction = "model.layers.1.mlp.gate.e_score_correction_bias", torch.tensor([8.0, 8.01, 8.02, 8.03])
    weights = load_file(base / "model.safetensors") | {name: correction}
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    merged.write(trained(base), out)
    written = load_file(out / "model.safetensors")
    assert torch.equal(written[name], correction)
    assert written["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(out).model.layers[1].mlp.gate.e_score_correction_bias[1] == 8.01


def test_layers_whose_weights_the_base_reads_itself_are_named(
    trained: Make, tiny_model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new adapter has no such layer, but one that a run went on from may have."""
    monkeypatch.setattr(targets, "_is_read_past", lambda *_: False)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    base = save_small("mamba", tiny_model.parent / "mamba", len(tokenizer))
    tokenizer.save_pretrained(base)
    with pytest.raises(ModelError, match=r"has no effect until it is merged\. got mixer\.dt_proj\. Export the adapter"):
        merged.write(trained(base), out)


def test_peft_refusing_to_merge_is_reported(trained: Make, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("NaNs detected in the merged weights")

    monkeypatch.setattr(PeftModel, "merge_and_unload", refuse, raising=False)
    with pytest.raises(ModelError, match=r"peft cannot merge the adapter into the base model.*NaNs detected"):
        merged.write(trained(), out)


# --- seeded faults ------------------------------------------------------------------------------------------------


def scaled_twice(model: PeftModel) -> Any:
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling = {name: 2 * scale for name, scale in module.scaling.items()}
    return model.merge_and_unload()


def one_layer_forgotten(model: PeftModel) -> Any:
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    torch.nn.init.zeros_(layer.lora_B["default"].weight)
    return model.merge_and_unload()


def not_merged(model: PeftModel) -> Any:
    return model.unload()


@pytest.mark.parametrize("fault", [scaled_twice, one_layer_forgotten, not_merged])
def test_wrong_merge_is_found(
    trained: Make, out: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[PeftModel], Any]
) -> None:
    # With a small adapter, the rounding to 16 bits would hide the fault. The check before the rounding finds it.
    origin = trained(scale=0.01)
    monkeypatch.setattr(merged, "merge", fault)
    with pytest.raises(ModelError, match="the merged model is not the model that was trained"):
        merged.write(origin, out)


def test_file_that_does_not_hold_the_merged_weights_is_found(
    trained: Make, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(*arguments: Any) -> None:
        tokenizer_files.write_tokenizer_files(*arguments)
        weights = load_file(out / "model.safetensors")
        weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
        save_file(weights, out / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(merged, "write_tokenizer_files", spoil)
    with pytest.raises(ModelError, match=r"do not contain the merged weights.*up_proj"):
        merged.write(trained(), out)


def change_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("User: ", "Human: "))


def drop_stop(folder: Path) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": None}))


def drop_one_of_two_stops(folder: Path) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [2]}))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (change_template, "does not render a conversation as in training"),
        (drop_stop, "does not have the stop tokens of the training"),
        (drop_one_of_two_stops, "does not have the stop tokens of the training"),
    ],
)
def test_wrong_tokenizer_files_are_found(trained: Make, out: Path, fault: Callable[[Path], None], message: str) -> None:
    # This template ends an answer with <s> = 1, in addition to the tokenizer's </s> = 2.
    origin = trained(template=BUILTIN_TEMPLATES["plain"].replace("eos_token", "'<s>'"))
    renderer = tokenizer_files.open_renderer(origin)
    tokenizer_files.write_tokenizer_files(origin, renderer, out)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [1, 2]
    tokenizer_files.check_tokenizer_files(out, renderer)
    fault(out)
    with pytest.raises(ModelError, match=message):
        tokenizer_files.check_tokenizer_files(out, renderer)


def test_built_in_template_writes_no_bos_for_a_tokenizer_that_adds_none(
    trained: Make, architecture: Callable[..., Path], out: Path
) -> None:
    folder = architecture("llama")
    tokenizer = json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    origin = trained(folder)
    tokenizer_files.write_tokenizer_files(origin, tokenizer_files.open_renderer(origin), out)
    exported = AutoTokenizer.from_pretrained(out)
    assert exported.bos_token == "<s>"
    text = exported.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert text == "User: Hi\nAssistant:"


def test_adapter_beside_the_base_is_not_part_of_the_merge(
    trained: Make, tiny_model: Path, tmp_path: Path, out: Path
) -> None:
    """transformers alone would load both adapters as one model."""
    both = Path(shutil.copytree(tiny_model, tmp_path / "both"))
    own = trained(scale=0.3)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(own.folder / name, both / name)
    (tmp_path / "alone").mkdir()
    merged.write(trained(), tmp_path / "alone")
    merged.write(trained(both), out)
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "alone" / "model.safetensors").read_bytes()
