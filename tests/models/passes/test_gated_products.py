"""Feed-forward parts that recompute their product: the same numbers and gradients to the last bit, and less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, save_model
from engine import LORA, disturb, language, open_roles, sequences
from torch import Tensor, nn

from alignment_core.config import LoadIn, LoraConfig
from alignment_core.models.memory.counting import AllocationCounter
from alignment_core.models.passes.gated_products import _is_gated, keep_products, recompute_products
from alignment_core.models.roles import shared_base
from alignment_core.models.roles.shared_base import Roles

GATED = {"llama", "llama tied", "qwen2", "qwen3", "gemma", "gemma2", "mistral", "hyperclovax", "cohere", "granite"}
"""Architectures with this part, beside RecurrentGemma. Phi-3 has one product for both, and the others have no gate."""
WIDE = {"intermediate_size": 4096, "num_hidden_layers": 3}


def opened(path: Path, load_in: LoadIn = "fp32", lora: LoraConfig = LORA) -> Roles:
    roles = open_roles(path, load_in)
    roles.add_new("policy", lora, 0)
    disturb(roles, "policy", 1)
    roles.train_only(["policy"])
    return roles


def learned(roles: Roles) -> list[Tensor]:
    for parameter in roles.parameters().values():
        parameter.grad = None
    torch.manual_seed(3)
    with roles.training():
        logps = language(roles, "policy").token_logps(sequences(6)).logps
        logps.sum().backward()
    return [logps.detach(), *(p.grad for p in roles.parameters().values() if p.grad is not None)]


def peak(roles: Roles) -> int:
    with AllocationCounter([*roles.model.parameters(), *roles.model.buffers()]) as counted:
        learned(roles)
    found: int = counted.peak
    return found


@pytest.mark.parametrize("load_in", ["fp32", "bf16", "nf4"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])  # SiLU, and GELU by its hyperbolic tangent
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_results_and_gradients_stay_the_same_bits(name: str, load_in: LoadIn, dropout: float, tmp_path: Path) -> None:
    roles = opened(save_model(name, tmp_path), load_in, LoraConfig(rank=4, dropout=dropout))
    ours = learned(roles)
    with keep_products():
        theirs = learned(roles)
    assert len(ours) == len(theirs) > 10
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("targets", "spared"), [(["down_proj", "q_proj"], 2), (["q_proj"], 1)])
def test_two_of_four_tensors_are_kept(targets: list[str], spared: int, tmp_path: Path) -> None:
    """Without an adapter on down_proj, the product is not kept anyway, and only act(gate) is spared."""
    roles = opened(save_model("llama", tmp_path, **WIDE), lora=LoraConfig(rank=2, target_modules=targets))

    def kept() -> int:
        with roles.training(), AllocationCounter([*roles.model.parameters(), *roles.model.buffers()]) as counted:
            logps = language(roles, "policy").token_logps(sequences(6)).logps
            assert logps.requires_grad
            found: int = counted.now
        return found

    ours = kept()
    with keep_products():
        theirs = kept()
    # The last of the three layers runs only for the tokens that predict one.
    tokens = sum(2 * len(one.ids) + len(one.completion) for one in sequences(6))
    assert theirs - ours == spared * tokens * 4096 * 4


def test_recomputed_layers_keep_as_little_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_model("llama", tmp_path, **WIDE)
    ours = opened(path)
    monkeypatch.setattr(shared_base, "recompute_products", lambda _: 0)
    theirs = opened(path)
    for roles in (ours, theirs):
        roles.checkpoint_layers(True)
    assert peak(ours) == peak(theirs)
    assert all(torch.equal(one, other) for one, other in zip(learned(ours), learned(theirs), strict=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gated_parts_are_found(name: str, tmp_path: Path) -> None:
    model = open_roles(save_model(name, tmp_path)).model
    assert (recompute_products(model) > 0) is (name in {*GATED, "recurrent gemma"})


class Gated(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(9, 7), nn.Linear(9, 7), nn.Linear(7, 9)
        self.act_fn = act

    def forward(self, x: Tensor) -> Any:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Swapped(Gated):
    def forward(self, x: Tensor) -> Any:
        return self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x))


class Clamped(Gated):
    def forward(self, x: Tensor) -> Any:
        return self.down_proj(self.act_fn(self.gate_proj(x)).clamp(max=50) * self.up_proj(x))


class Scaled(Gated):
    def forward(self, x: Tensor) -> Any:
        return 1.01 * super().forward(x)


class Several(Gated):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


def test_other_arguments_are_left_to_the_architecture() -> None:
    module = Gated(nn.SiLU())
    x = torch.randn(2, 9, requires_grad=True)
    expected = module(x)
    assert recompute_products(module) == 2 * 7
    assert torch.equal(module(x), expected)
    assert torch.equal(module(x=x), expected)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Gated(nn.SiLU()), True),
        (Gated(nn.GELU()), True),
        (Gated(nn.PReLU()), False),
        (Swapped(nn.SiLU()), False),
        (Clamped(nn.SiLU()), False),
        (Scaled(nn.SiLU()), False),
        (Several(nn.SiLU()), False),
        (nn.Linear(2, 2), False),
    ],
    ids=lambda one: type(one).__name__,
)
def test_only_the_plain_formula_is_replaced(module: nn.Module, expected: bool) -> None:
    weights = [parameter.clone() for parameter in module.parameters()]
    assert _is_gated(module) is expected
    assert all(torch.equal(one, other) for one, other in zip(module.parameters(), weights, strict=True))
