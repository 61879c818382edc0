"""Our norms and rotations, compared with transformers': same numbers and gradients, and less saved for backward."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from architectures import ARCHITECTURES, save_model
from engine import LORA, disturb, language, open_roles, sequences
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3

from alignment_core.config import LoadIn
from alignment_core.models.passes.norms_and_rope import (
    ROTATION,
    _RmsNorm,
    _Rotated,
    _rotates_halves,
    _Rotation,
    fuse_norms_and_rope,
)
from alignment_core.models.roles import shared_base as of_roles
from alignment_core.models.roles.shared_base import Roles

SAME_NORM = {"llama", "llama tied", "qwen2", "qwen3", "mistral", "phi3", "hyperclovax", "granite"}
"""Architectures with the plain RMSNorm. Gemma adds 1 to the weights, and the other norms subtract the mean."""


@pytest.fixture(autouse=True)
def _rotations_of_transformers() -> Iterator[None]:
    """Restore the rotations of transformers before and after each test."""
    restore_rotations()
    yield
    restore_rotations()


def restore_rotations() -> None:
    for file in [file for name, file in sys.modules.items() if name.startswith("transformers.models.")]:
        if isinstance(file, ModuleType) and isinstance(ours := vars(file).get(ROTATION), _Rotation):
            setattr(file, ROTATION, ours.theirs)


def opened(path: Path, load_in: LoadIn = "fp32") -> Roles:
    roles = open_roles(path, load_in)
    roles.add_new("policy", LORA, 0)
    disturb(roles, "policy", 1)
    roles.train_only(["policy"])
    return roles


def learned(roles: Roles, checkpointing: bool = False) -> list[Tensor]:
    roles.checkpoint_layers(checkpointing)
    with roles.training():
        logps = language(roles, "policy").token_logps(sequences(6)).logps
        logps.sum().backward()
    return [logps.detach(), *(p.grad for p in roles.parameters().values() if p.grad is not None)]


def norms(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("load_in", ["fp32", "bf16"])
def test_values_and_gradients_match_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, load_in: LoadIn
) -> None:
    path = save_model(name, tmp_path)
    ours = learned(opened(path, load_in))
    restore_rotations()
    monkeypatch.setattr(of_roles, "fuse_norms_and_rope", lambda _: None)
    theirs = learned(opened(path, load_in))
    assert len(ours) == len(theirs) > 4
    tolerance = 2e-5 if load_in == "fp32" else 0.08
    for one, other in zip(ours, theirs, strict=True):
        assert float((one - other).norm()) <= tolerance * float(other.norm()) + 1e-7


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_norms_keep_their_forward(tmp_path: Path, name: str) -> None:
    roles = open_roles(save_model(name, tmp_path))
    fused = [module for module in norms(roles.model) if "forward" in vars(module)]
    assert fused == (norms(roles.model) if name in SAME_NORM else [])


def test_rotation_is_replaced_only_once(tmp_path: Path) -> None:
    theirs = modeling_llama.apply_rotary_pos_emb
    roles = open_roles(save_model("llama", tmp_path))
    fuse_norms_and_rope(roles.model)
    assert modeling_llama.apply_rotary_pos_emb == _Rotation(theirs)


def test_model_without_weights_is_fused_too(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(save_model("qwen3", tmp_path))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        fuse_norms_and_rope(model)
    assert all("forward" in vars(module) for module in norms(model))
    assert isinstance(modeling_qwen3.apply_rotary_pos_emb, _Rotation)


def test_modified_rotation_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The modified rotation also scales the keys."""

    def scaled(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        q, k = (x * cos + modeling_llama.rotate_half(x) * sin for x in (q, k))
        return q, 1.01 * k

    monkeypatch.setattr(modeling_llama, ROTATION, scaled)
    open_roles(save_model("llama", tmp_path))
    assert modeling_llama.apply_rotary_pos_emb is scaled


@pytest.mark.parametrize("unsqueeze", [1, 2])
def test_other_rotations_are_left_to_transformers(unsqueeze: int) -> None:
    ours = _Rotation(modeling_llama.apply_rotary_pos_emb)
    shape = (2, 3, 5, 8) if unsqueeze == 1 else (2, 5, 3, 8)
    q, k, cos, sin = torch.randn(shape), torch.randn(shape), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    for dtype in (torch.float32, torch.bfloat16):  # cosines in float32 make the result float32
        found, expected = (
            turn(q.to(dtype), k.to(dtype), cos, sin, unsqueeze_dim=unsqueeze) for turn in (ours, ours.theirs)
        )
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other)


def test_calls_with_other_arguments_are_left_to_transformers() -> None:
    """Qwen 4 also rotates queries alone."""

    def theirs(q: Tensor, *rest: object, **more: object) -> tuple[object, ...]:
        return q, *rest, more

    ours, q, cos = _Rotation(theirs), torch.randn(1, 1, 2, 4), torch.randn(1, 2, 4)
    assert ours(q, cos=cos, sin=cos) == (q, {"cos": cos, "sin": cos})
    assert ours(q, q, cos, cos, None) == (q, q, cos, cos, None, {})
    assert ours(q, q, cos, cos, position_ids=3) == (q, q, cos, cos, {"position_ids": 3})


def test_gradients_match_finite_differences() -> None:
    x, weight = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True), torch.rand(8) + 0.5
    cos, sin = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    assert torch.autograd.gradcheck(lambda x: _Rotated.apply(x, cos.double(), sin.double()), x)
    # The norm always computes in float32, so the finite-difference steps must be wide.
    assert torch.autograd.gradcheck(lambda x: _RmsNorm.apply(x, weight, 1e-6), x, eps=1e-2, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_saves_its_input_and_one_number_per_token(dtype: torch.dtype) -> None:
    x, weight = torch.randn(2, 50, 64, dtype=dtype, requires_grad=True), torch.ones(64, dtype=dtype)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _RmsNorm.apply(x, weight, 1e-6)
    assert sum(t.nbytes for t in kept) == x.nbytes + weight.nbytes + 4 * 100


def test_trainable_norms_get_their_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, found = save_model("llama", tmp_path), []
    for on in (True, False):
        if not on:
            restore_rotations()
            monkeypatch.setattr(of_roles, "fuse_norms_and_rope", lambda _: None)
        roles = opened(path)
        roles.train_only(["policy"], base=True)
        found.append(learned(roles, checkpointing=True))
        assert all(norm.weight.grad is not None for norm in norms(roles.model))
    for one, other in zip(*found, strict=True):
        assert float((one - other).norm()) <= 2e-5 * float(other.norm()) + 1e-7


class OtherEpsilon(nn.Module):
    """x / (√(mean x²) + ε): equal to the plain norm except for inputs of about ε."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.square().mean(-1, keepdim=True).sqrt() + self.eps)


class Gated(OtherEpsilon):
    """Needs a second input."""

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        return super().forward(x * gate.to(x.dtype))  # type: ignore[union-attr]


@pytest.mark.parametrize("norm", [OtherEpsilon, Gated])
def test_a_norm_that_differs_only_for_small_inputs_is_kept(norm: type[nn.Module]) -> None:
    model = nn.Sequential(norm())
    fuse_norms_and_rope(model)
    assert "forward" not in vars(model[0])


def test_a_rotation_that_differs_only_in_the_other_layout_is_kept() -> None:
    def ignores_layout(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        del unsqueeze_dim
        turn = modeling_llama.apply_rotary_pos_emb
        return turn(q, k, cos, sin) if q.shape[1] == 4 else (q, k)

    assert not _rotates_halves(ignores_layout)
    assert _rotates_halves(modeling_llama.apply_rotary_pos_emb)
