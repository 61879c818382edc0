"""Norms and rotary embeddings with fewer passes over memory and with hand-written gradients.

Between their matrix products, layers are bound by memory bandwidth. The RMSNorm of transformers keeps three tensors for
backward, although its input and one number per token are enough. Its rotation copies the input twice, and copies the
halves of the gradient into tensors of zeros. Which formula an architecture uses is tested, not derived from its name.
An architecture with another formula keeps its own code.
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

from alignment_core.models.passes.packing import REFUSALS

ROTATION = "apply_rotary_pos_emb"
"""Name of the rotation function in the transformers module of each architecture."""
TURNED = ("q", "k", "cos", "sin")
"""Its arguments. Calls with others are no plain rotation of queries and keys."""
SIZES = (1.0, 1e-3, 1e3)
"""Magnitudes of the inputs of a trial. Only small ones show where ε stands in the formula."""
CLOSE = 1e-5
"""Relative tolerance for the same float32 sums in another order. Another formula differs by much more."""


def fuse_norms_and_rope(model: nn.Module) -> None:
    """Replace the model's norms and rotations with ours if they compute the same.

    The rotation is a function in the architecture's module and is replaced there, so every model of that architecture
    uses it.
    """
    with torch.device("cpu"):  # test on the CPU, whatever device the model is built on
        _fuse(model)


def _fuse(model: nn.Module) -> None:
    for module in model.modules():
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if isinstance(epsilon, float) and _is_rms_norm(module, epsilon):
            module.forward = partial(_normalized, module, epsilon, module.forward)
    for file in {type(module).__module__ for module in model.modules()}:
        theirs = getattr(sys.modules[file], ROTATION, None)
        if theirs is not None and not isinstance(theirs, _Rotation) and _rotates_halves(theirs):
            setattr(sys.modules[file], ROTATION, _Rotation(theirs))


# --- RMSNorm ------------------------------------------------------------------------------------------------------


def _is_rms_norm(module: nn.Module, epsilon: float) -> bool:
    """Return whether the module computes w·x / √(mean x² + ε).

    Tested on a copy with random weights, because a model on the meta device has none.
    """
    weights = dict(module.named_parameters())
    if list(weights) != ["weight"] or weights["weight"].dim() != 1:
        return False
    trial: Any = copy.deepcopy(module).to_empty(device="cpu").float()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        trial.weight.uniform_(0.5, 2.0, generator=generator)
        x = torch.randn(2, 3, len(trial.weight), generator=generator)
        return all(_normalizes(trial, size * x, epsilon) for size in SIZES)


def _normalizes(trial: Any, x: Tensor, epsilon: float) -> bool:
    try:
        expected = trial(x)
        found = _RmsNorm.apply(x, trial.weight, epsilon)  # type: ignore[no-untyped-call]
    except REFUSALS:
        return False
    return isinstance(expected, Tensor) and _same(found, expected)


def _normalized(
    module: Any, epsilon: float, theirs: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    weight: Tensor = module.weight
    if args or kwargs or weight.requires_grad or weight.dtype != x.dtype:
        return theirs(x, *args, **kwargs)
    found: Tensor = _RmsNorm.apply(x, weight, epsilon)  # type: ignore[no-untyped-call]
    return found


class _RmsNorm(torch.autograd.Function):
    """w·x / √(mean x² + ε), w frozen: normalized in float32, rounded to x's dtype, then scaled, as in transformers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        factor = square.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, factor)
        return _scaled(wide, factor, x).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return (h - n · mean(h·n)) / √(mean x² + ε), with n = x / √(mean x² + ε) and h the gradient of n."""
        x, weight, factor = ctx.saved_tensors
        of_unit = (gradients[0] * weight).float()
        unit = _scaled(x.float(), factor, x)
        along = torch.linalg.vecdot(of_unit, unit).unsqueeze(-1).div_(-x.shape[-1])
        return of_unit.addcmul_(unit, along).mul_(factor).to(x.dtype), None, None


def _scaled(wide: Tensor, factor: Tensor, x: Tensor) -> Tensor:
    """Multiply `wide` by `factor`, in place unless `wide` is x itself."""
    return wide * factor if wide is x else wide.mul_(factor)


# --- rotary embedding ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rotation:
    """Replaces an architecture's rotation function, which still handles calls that are not a plain rotation."""

    theirs: Callable[..., tuple[Tensor, Tensor]]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(TURNED, args, strict=False)) | kwargs
        unsqueeze_dim = given.pop("unsqueeze_dim", 1)
        if len(args) > len(TURNED) or given.keys() != set(TURNED):
            return self.theirs(*args, **kwargs)
        q, k, cos, sin = (given[name] for name in TURNED)
        same = q.shape[-1] == k.shape[-1] == cos.shape[-1] and q.dtype == k.dtype == cos.dtype == sin.dtype
        if not same or cos.requires_grad:
            return self.theirs(*args, **kwargs)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return _Rotated.apply(q, cos, sin), _Rotated.apply(k, cos, sin)  # type: ignore[no-untyped-call]


class _Rotated(torch.autograd.Function):
    """Rotates the two halves of the last dimension: (a, b) → (a·cos - b·sin, b·cos + a·sin)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        (cos_a, cos_b), (sin_a, sin_b) = cos.chunk(2, -1), sin.chunk(2, -1)
        return _turned(x, cos_a, cos_b, -sin_a, sin_b)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of x: the transposed rotation."""
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
        expected = [*theirs(q, k, cos, sin), *_other_layout(theirs, q, k, cos, sin)]
    except REFUSALS:
        return False
    ours = _Rotation(theirs)
    found = [*ours(q, k, cos, sin), *_other_layout(ours, q, k, cos, sin)]
    return all(_same(*pair) for pair in zip(found, expected, strict=True))


def _other_layout(turn: Callable[..., Any], q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate with the heads after the tokens, as some architectures do."""
    a, b = turn(q.transpose(1, 2), k.transpose(1, 2), cos, sin, unsqueeze_dim=2)
    return a.transpose(1, 2), b.transpose(1, 2)


def _same(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= CLOSE * expected.abs().max())
