"""Norms and rotary embeddings in fewer passes over memory, with gradients written by hand.

Layers are memory's work between their products: transformers' RMSNorm keeps three tensors for backward where its input
and one number a token are enough, and a rotation copies its input twice and its gradient's halves into rows of zeros.
Which formula an architecture means is found out by trying, not by its name; one that means another keeps its own.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

ROTATION = "apply_rotary_pos_emb"
"""What transformers calls the function in each architecture's file."""
CLOSE = 1e-5
"""Two orders of the same float32 sums; another formula is off by much more."""


def fuse(model: nn.Module) -> None:
    """Let the model's norms and rotations run as ours where they compute the same.

    A rotation is a function of its architecture's file, replaced there: every model of that architecture gets it.
    """
    with torch.device("cpu"):  # where it is tried, whatever device the model is being made on
        _fuse(model)


def _fuse(model: nn.Module) -> None:
    for module in model.modules():
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if isinstance(epsilon, float) and _is_rms_norm(module, epsilon):
            module.forward = partial(_normalised, module, epsilon, module.forward)
    for file in {type(module).__module__ for module in model.modules()}:
        theirs = getattr(sys.modules[file], ROTATION, None)
        if theirs is not None and not isinstance(theirs, _Rotation) and _rotates_halves(theirs):
            setattr(sys.modules[file], ROTATION, _Rotation(theirs))


# --- RMSNorm ------------------------------------------------------------------------------------------------------


def _is_rms_norm(module: nn.Module, epsilon: float) -> bool:
    """Whether a copy with weights of its own, which a model without any lacks, says w·x / √(mean x² + ε)."""
    weights = dict(module.named_parameters())
    if list(weights) != ["weight"] or weights["weight"].dim() != 1:
        return False
    mine: Any = copy.deepcopy(module).to_empty(device="cpu").float()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        mine.weight.uniform_(0.5, 2.0, generator=generator)
        x = torch.randn(2, 3, len(mine.weight), generator=generator)
        try:
            expected = mine(x)
        except (RuntimeError, TypeError):
            return False
        found = _RmsNorm.apply(x, mine.weight, epsilon)  # type: ignore[no-untyped-call]
    return isinstance(expected, Tensor) and _same(found, expected)


def _normalised(
    module: Any, epsilon: float, theirs: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    weight: Tensor = module.weight
    if args or kwargs or weight.requires_grad or weight.dtype != x.dtype:
        return theirs(x, *args, **kwargs)
    found: Tensor = _RmsNorm.apply(x, weight, epsilon)  # type: ignore[no-untyped-call]
    return found


class _RmsNorm(torch.autograd.Function):
    """w·x / √(mean x² + ε), w frozen: normalised in float32, rounded to x's type, then scaled, as transformers does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        factor = square.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, factor)
        return _scaled(wide, factor, x).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """With n = x / √(mean x² + ε) and h the gradient of n: (h - n · mean(h·n)) / √(mean x² + ε)."""
        x, weight, factor = ctx.saved_tensors
        of_unit = (gradients[0] * weight).float()
        unit = _scaled(x.float(), factor, x)
        along = torch.linalg.vecdot(of_unit, unit).unsqueeze(-1).div_(-x.shape[-1])
        return of_unit.addcmul_(unit, along).mul_(factor).to(x.dtype), None, None


def _scaled(wide: Tensor, factor: Tensor, x: Tensor) -> Tensor:
    """In place, unless it is x itself."""
    return wide * factor if wide is x else wide.mul_(factor)


# --- rotary embedding ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rotation:
    """Stands in an architecture's file for its own function, which still does what is no plain rotation."""

    theirs: Callable[..., tuple[Tensor, Tensor]]

    def __call__(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, unsqueeze_dim: int = 1, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        same = q.shape[-1] == k.shape[-1] == cos.shape[-1] and q.dtype == k.dtype == cos.dtype == sin.dtype
        if args or kwargs or not same or cos.requires_grad:
            return self.theirs(q, k, cos, sin, *args, unsqueeze_dim=unsqueeze_dim, **kwargs)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return _Rotated.apply(q, cos, sin), _Rotated.apply(k, cos, sin)  # type: ignore[no-untyped-call]


class _Rotated(torch.autograd.Function):
    """(a, b) → (a·cos - b·sin, b·cos + a·sin) of the two halves of the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        (cos_a, cos_b), (sin_a, sin_b) = cos.chunk(2, -1), sin.chunk(2, -1)
        return _turned(x, cos_a, cos_b, -sin_a, sin_b)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The transposed turn."""
        (cos_a, cos_b), (sin_a, sin_b) = (part.chunk(2, -1) for part in ctx.saved_tensors)
        return _turned(gradients[0], cos_a, cos_b, sin_b, -sin_a), None, None


def _turned(x: Tensor, a_of_a: Tensor, b_of_b: Tensor, a_of_b: Tensor, b_of_a: Tensor) -> Tensor:
    (a, b), out = x.chunk(2, -1), torch.empty_like(x)
    to_a, to_b = out.chunk(2, -1)
    torch.mul(a, a_of_a, out=to_a)
    torch.mul(b, b_of_b, out=to_b)
    to_a.addcmul_(b, a_of_b)
    to_b.addcmul_(a, b_of_a)
    return out


def _rotates_halves(theirs: Callable[..., Any]) -> bool:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 3, 8), (2, 2, 3, 8), (2, 3, 8), (2, 3, 8))
    q, k, cos, sin = (torch.randn(shape, generator=generator) for shape in shapes)
    try:
        expected = theirs(q, k, cos, sin)
    except (RuntimeError, TypeError, IndexError):
        return False
    return all(_same(*pair) for pair in zip(_Rotation(theirs)(q, k, cos, sin), expected, strict=True))


def _same(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= CLOSE * expected.abs().max())
