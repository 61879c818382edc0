"""Our forward of a plain LoRA layer, compared with PEFT's."""

from pathlib import Path

import pytest
import torch
from architectures import save_model
from engine import disturb, language, open_roles, sequences
from torch import Tensor

from alignment_core.config import LoadIn, LoraConfig
from alignment_core.models.roles.shared_base import Roles

PLAIN = LoraConfig(rank=4, alpha=8, dropout=0.3)


def opened(path: Path, load_in: LoadIn = "fp32", lora: LoraConfig = PLAIN) -> Roles:
    roles = open_roles(path, load_in)
    roles.add_new("policy", lora, 0)
    disturb(roles, "policy", 1)
    roles.train_only(["policy"])
    return roles


def peft_alone(roles: Roles) -> None:
    """Remove our forward, so that the class's own is used."""
    for layer in roles._adapters.layers:
        del layer.__dict__["forward"]


def learned(roles: Roles) -> list[Tensor]:
    """Return log-probabilities and gradients with dropout, from a fixed seed."""
    torch.manual_seed(5)
    with roles.training():
        logps = language(roles, "policy").token_logps(sequences(6)).logps
        logps.sum().backward()
    found = [logps.detach(), *(p.grad.clone() for p in roles.parameters().values() if p.grad is not None)]
    for parameter in roles.parameters().values():
        parameter.grad = None
    return found


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("load_in", ["fp32", "bf16", "nf4", "int8"])
def test_values_and_gradients_match_peft(tmp_path: Path, name: str, load_in: LoadIn, dropout: float) -> None:
    roles = opened(save_model(name, tmp_path), load_in, PLAIN.model_copy(update={"dropout": dropout}))
    ours = learned(roles)
    peft_alone(roles)
    theirs = learned(roles)
    assert len(ours) == len(theirs) > 4
    tolerance = 1e-5 if roles.model.dtype == torch.float32 else 0.08
    for one, other in zip(ours, theirs, strict=True):
        assert float((one - other).norm()) <= tolerance * float(other.norm())


def test_other_lora_variants_are_left_to_peft(tiny_model: Path) -> None:
    roles = opened(tiny_model, lora=LoraConfig(rank=4, alpha=8, dora=True))
    ours = learned(roles)
    peft_alone(roles)
    assert all(torch.equal(one, other) for one, other in zip(ours, learned(roles), strict=True))


def test_layers_with_the_same_input_save_it_once(tmp_path: Path) -> None:
    """PEFT saves a bf16 copy for each of query, key and value, and for gate and up."""
    roles = opened(save_model("llama", tmp_path, hidden_size=128, intermediate_size=256), "bf16", LoraConfig())

    def saved_bytes() -> int:
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with roles.training(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logps = language(roles, "policy").token_logps(sequences(8, completion=60)).logps
        assert logps.requires_grad
        return sum(sizes.values())

    ours = saved_bytes()
    peft_alone(roles)
    assert ours < 0.93 * saved_bytes()


def test_trainable_base_gets_its_gradients(tiny_model: Path) -> None:
    roles = opened(tiny_model)
    roles.train_only(["policy"], base=True)
    ours = learned(roles)
    peft_alone(roles)
    theirs = learned(roles)
    assert len(ours) == len(theirs) > 20
    for one, other in zip(ours, theirs, strict=True):
        assert float((one - other).norm()) <= 1e-5 * float(other.norm())


@pytest.mark.parametrize("name", ["qwen2", "llama"])  # with and without a bias
def test_the_output_may_be_changed_in_place(tmp_path: Path, name: str) -> None:
    """Llama 4 and Gemma 3n do so. autograd refuses it for a view of what a function returned."""
    layer = opened(save_model(name, tmp_path)).model.model.layers[0].self_attn.q_proj
    x = torch.randn(2, 3, 32, requires_grad=True)
    output = layer(x)
    expected = torch.autograd.grad((2 * output).sum(), x)[0]
    changed = layer(x)
    changed *= 2
    assert torch.equal(torch.autograd.grad(changed.sum(), x)[0], expected)
