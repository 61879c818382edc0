"""Merged weights by hand, every architecture and kind of adapter, and seeded faults that the parity check must find."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import Make
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment_core.data.chat_templates import BUILTIN_TEMPLATES
from alignment_core.errors import ModelError
from alignment_core.export import merged, speech


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
    there = load_file(out / "model.safetensors")
    touched = 0
    for name, weight in there.items():
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        expected = base[name]
        if (down := factors.get(f"{layer}.lora_A.weight")) is not None:
            expected = expected + scale * factors[f"{layer}.lora_B.weight"] @ down
            touched += 1
        assert weight.dtype == torch.bfloat16
        # The base is float32 here, so the sum is rounded once: to half of bfloat16's last place, 2⁻⁸ of the number.
        assert torch.all((weight.float() - expected).abs() <= 2**-8 * expected.abs() + 1e-6), name
    assert touched == 14  # seven linear layers in each of two blocks
    assert found["dtype"] == "bfloat16"
    assert found["before_rounding"]["largest_difference"] < 1e-4
    assert found["before_rounding"]["largest_difference"] < found["after_rounding"]["largest_difference"]
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        ("gpt2", {}),  # Conv1D: weights are stored the other way round
        ("gpt2", {"dora": True}),
        ("llama tied", {"dora": True}),
        ("qwen2", {"rslora": True, "target_modules": ["q_proj", "down_proj"]}),
        ("gemma2", {}),
        ("phi3", {}),  # one matrix for query, key and value
    ],
)
def test_every_kind_of_adapter_and_layer_survives_the_parity_check(
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


def test_base_in_16_bits_keeps_its_own_type(trained: Make, architecture: Callable[..., Path], out: Path) -> None:
    folder = architecture("llama")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).save_pretrained(folder)
    assert merged.write(trained(folder), out)["dtype"] == "float16"
    assert all(weight.dtype == torch.float16 for weight in load_file(out / "model.safetensors").values())


def test_distance_from_the_quantised_base_is_told_and_the_full_precision_one_is_merged(
    trained: Make, out: Path
) -> None:
    found = merged.write(trained(load_in="nf4"), out)
    # 4 bits move the logits by much more than 16 do, and nobody minds.
    assert found["on_nf4_base"]["largest_logit_difference"] > found["after_rounding"]["largest_difference"]
    assert found["on_nf4_base"]["kl_per_token"] > 0


def test_quantised_checkpoint_is_refused(trained: Make, architecture: Callable[..., Path], out: Path) -> None:
    folder = architecture("llama")
    origin = trained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="there are no full-precision weights to merge into"):
        merged.write(origin, out)


def test_too_little_memory_is_told_before_the_base_is_loaded(
    trained: Make, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged, "available_memory", lambda device: 1000)
    monkeypatch.setattr(merged, "load_base", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(ModelError, match="does not fit"):
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
    # An adapter that moves little: what is wrong with it hides below the rounding to 16 bits, and is found before it.
    origin = trained(scale=0.01)
    monkeypatch.setattr(merged, "merge", fault)
    with pytest.raises(ModelError, match="the merged model is not the model that was trained"):
        merged.write(origin, out)


def test_file_that_does_not_hold_the_merged_weights_is_found(
    trained: Make, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(*arguments: Any) -> None:
        speech.write_speech(*arguments)
        weights = load_file(out / "model.safetensors")
        weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
        save_file(weights, out / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(merged, "write_speech", spoil)
    with pytest.raises(ModelError, match=r"do not hold the merged weights.*up_proj"):
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
    ("fault", "words"),
    [
        (change_template, "does not render a conversation as in training"),
        (drop_stop, "does not stop where it learnt to"),
        (drop_one_of_two_stops, "does not stop where it learnt to"),
    ],
)
def test_wrong_words_are_found(trained: Make, out: Path, fault: Callable[[Path], None], words: str) -> None:
    # This template ends an answer on <s> = 1, beside the tokenizer's own </s> = 2.
    origin = trained(template=BUILTIN_TEMPLATES["plain"].replace("eos_token", "'<s>'"))
    renderer = speech.open_renderer(origin)
    speech.write_speech(origin, renderer, out)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [1, 2]
    speech.check_speech(out, renderer)
    fault(out)
    with pytest.raises(ModelError, match=words):
        speech.check_speech(out, renderer)


def test_built_in_template_writes_no_bos_for_a_tokenizer_that_adds_none(
    trained: Make, architecture: Callable[..., Path], out: Path
) -> None:
    folder = architecture("llama")
    tokenizer = json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    origin = trained(folder)
    speech.write_speech(origin, speech.open_renderer(origin), out)
    exported = AutoTokenizer.from_pretrained(out)
    assert exported.bos_token == "<s>"
    text = exported.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert text == "User: Hi\nAssistant:"
