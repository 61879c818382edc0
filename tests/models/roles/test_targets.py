"""Which weights get an adapter, and what is said about the others."""

import json
from pathlib import Path

import pytest
import torch
from engine import LORA, disturb, language, open_roles, sequences
from every_architecture import save_small
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from alignment_core.config import LoraConfig
from alignment_core.errors import ConfigError
from alignment_core.models.base.layers import unquantised
from alignment_core.models.roles.shared_base import Roles


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: save_small(name, folder / name) for name in ("llama", "qwen3_moe", "gpt_oss", "falcon_h1", "laguna")}


def opened(folder: Path, lora: LoraConfig = LORA) -> Roles:
    roles = open_roles(folder)
    roles.add_new("policy", lora, 0)
    return roles


def adapted(roles: Roles) -> set[str]:
    """Return the kinds of modules that carry adapters; experts by the names of their parameters."""
    found = set()
    for name, module in roles.model.named_modules():
        if isinstance(module, ParamWrapper):
            found.add(module.parameter_name)
        elif hasattr(module, "lora_A"):
            found.add(name.rpartition(".")[2])
    return found


def test_every_weight_of_an_ordinary_model_is_adapted(models: dict[str, Path]) -> None:
    assert opened(models["llama"]).left_out() is None


def test_layer_whose_weight_is_read_past_it_has_no_adapter(tmp_path: Path) -> None:
    """Mamba multiplies by the weight of `dt_proj`. BLOOM does so with `dense` only in a mode of its training."""
    mamba = opened(save_small("mamba", tmp_path / "mamba"))
    assert adapted(mamba) == {"in_proj", "x_proj"}
    said = mamba.left_out()
    assert said is not None
    assert "dt_proj.weight" in said
    bloom = opened(save_small("bloom", tmp_path / "bloom"))
    assert {"dense", "dense_4h_to_h"} < adapted(bloom)
    assert bloom.left_out() is None


def test_experts_and_router_are_adapted_as_peft_does(models: dict[str, Path]) -> None:
    roles = opened(models["qwen3_moe"])
    assert adapted(roles) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj", "weight"}
    assert roles.left_out() is None


def test_experts_are_adapted_where_peft_needs_to_be_told(models: dict[str, Path]) -> None:
    roles = opened(models["gpt_oss"])
    assert adapted(roles) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"}
    said = roles.left_out()
    assert said is not None
    assert said.startswith("no adapter on experts.down_proj_bias, experts.gate_up_proj_bias, router.weight: ")


@pytest.mark.parametrize("option", [{"dropout": 0.1}, {"dora": True}])
def test_experts_are_left_out_and_named_where_peft_cannot(models: dict[str, Path], option: dict[str, float]) -> None:
    roles = opened(models["qwen3_moe"], LORA.model_copy(update=option))
    assert adapted(roles) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    said = roles.left_out()
    assert said is not None
    # 4 layers: experts of 4 · 3 · 16 · 32 weights and a router of 4 · 32, beside attention of 32 · (32 + 16 + 16 + 32).
    assert said == (
        "no adapter on experts.down_proj, experts.gate_up_proj, gate.weight: "
        f"{100 * 6272 / (6272 + 3072):.1f} % of the weights inside the layers stay fixed"
    )


def test_layers_that_peft_refuses_are_left_out_and_named(models: dict[str, Path]) -> None:
    roles = opened(models["falcon_h1"])
    assert "out_proj" not in adapted(roles)
    assert {"in_proj", "q_proj", "gate_proj"} <= adapted(roles)
    said = roles.left_out()
    assert said is not None
    assert "out_proj.weight" in said


@pytest.mark.parametrize(
    ("name", "targets", "option", "problem"),
    [
        ("falcon_h1", ["q_proj", "out_proj"], {}, "peft cannot adapt a target module"),
        ("qwen3_moe", ["q_proj", "gate_proj"], {}, "Cannot convert PEFT target"),
        ("qwen3_moe", ["gate_proj", "up_proj", "down_proj"], {"dropout": 0.1}, "with dropout or DoRA"),
        ("qwen3_moe", ["q_proj", "nothing"], {}, "not a linear layer"),
    ],
)
def test_named_targets_that_cannot_be_adapted_are_one_sentence(
    models: dict[str, Path], name: str, targets: list[str], option: dict[str, float], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        opened(models[name], LORA.model_copy(update={"target_modules": targets, **option}))


def test_old_names_of_experts_are_understood(models: dict[str, Path]) -> None:
    lora = LORA.model_copy(update={"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]})
    assert adapted(opened(models["qwen3_moe"], lora)) == {"q_proj", "gate_up_proj", "down_proj"}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_adapter_of_layers_that_peft_would_rename_is_loaded(models: dict[str, Path], tmp_path: Path) -> None:
    """peft renames some weights of Laguna when it loads them, and goes on without those that it then does not find."""
    base = AutoModelForCausalLM.from_pretrained(models["laguna"])
    get_peft_model(base, PeftLoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False)).save_pretrained(
        tmp_path
    )
    roles = open_roles(models["laguna"])
    roles.add_saved("policy", tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert any("shared_experts" in key for key in saved)
    for key, weight in roles.adapter_weights("policy").items():
        assert torch.equal(weight, saved[key]), key


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_a_saved_adapter_comes_back_completely(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    roles = opened(models[name])
    disturb(roles, "policy", 1)
    roles.save("policy", tmp_path)
    again = open_roles(models[name])
    again.add_saved("policy", tmp_path)
    again.add_copy("copy", of="policy")
    for role in ("policy", "copy"):
        for key, weight in roles.adapter_weights("policy").items():
            assert torch.equal(again.adapter_weights(role)[key], weight), key
    found = sequences(4)
    with torch.no_grad():
        assert torch.equal(language(roles, "policy").logps(found), language(again, "copy").logps(found))


def test_layers_whose_weights_peft_would_rename_are_left_out(models: dict[str, Path], tmp_path: Path) -> None:
    roles = opened(models["laguna"])
    roles.save("policy", tmp_path)
    targets = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert not any("shared_experts" in target for target in targets)
    assert not any("shared_experts" in name and ".lora_" in name for name, _ in roles.model.named_parameters())


def test_weights_that_are_not_quantized_are_counted(models: dict[str, Path]) -> None:
    assert unquantised(open_roles(models["llama"], "nf4").model) is None
    # In float32: 4 layers of experts with 4 · 3 · 16 · 32 weights, and of a router with 4 · 32.
    assert unquantised(open_roles(models["qwen3_moe"], "nf4").model) == (
        "only linear layers are quantized: experts.down_proj, experts.gate_up_proj, gate.weight "
        f"stay in float32 and take {4 * 4 * 6272 / 2**20:.1f} MiB"
    )
