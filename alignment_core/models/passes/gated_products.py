"""Gated feed-forward parts that keep only their gate and what it multiplies, and recompute everything else.

Of W_down(act(gate) · up), autograd keeps four tensors of the widest kind in a layer: gate, act(gate), up and, for the
adapter of W_down, their product. Two are enough. Which architectures compute this is tested, not derived from a name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from alignment_core.models.passes.packing import REFUSALS

PARTS = ("gate_proj", "up_proj", "down_proj")
SIZES = (1.0, 1e-3, 1e3)
"""Magnitudes of the inputs of a trial. Only large ones show a clamp."""
CLOSE = 1e-5
IN, INNER = 6, 10
"""Widths of the linear layers in a trial."""

Activation = Callable[[Tensor], Tensor]
_keeps_all: ContextVar[bool] = ContextVar("keeps_all", default=False)


@contextmanager
def keep_products() -> Iterator[None]:
    """Keep everything inside the context: in a layer that is recomputed as a whole, nothing waits for backward."""
    token = _keeps_all.set(True)
    try:
        yield
    finally:
        _keeps_all.reset(token)


def recompute_products(model: nn.Module) -> int:
    """Make the model's gated feed-forward parts recompute their products in backward.

    Returns:
        How many elements a token keeps less for backward, in all layers.
    """
    found: dict[type, bool] = {}
    spared = 0
    module: Any
    for module in model.modules():
        kind = type(module)
        if kind not in found:
            found[kind] = _is_gated(module)
        if found[kind]:
            spared += 2 * module.up_proj.out_features
            module.forward = partial(_forward, module, module.forward)
    return spared


def _is_gated(module: Any) -> bool:
    """Return whether the module computes W_down(act(W_gate·x) · W_up·x). Tested on a copy with small weights."""
    act = getattr(module, "act_fn", None)
    if not callable(act) or not all(isinstance(getattr(module, name, None), nn.Linear) for name in PARTS):
        return False
    if isinstance(act, nn.Module) and any(True for _ in act.parameters()):
        return False
    generator = torch.Generator().manual_seed(0)
    with torch.device("cpu"), torch.no_grad():  # whatever device the model is built on
        trial = copy.copy(module)
        trial._modules = dict(module._modules)
        for name, shape in zip(PARTS, ((IN, INNER), (IN, INNER), (INNER, IN)), strict=True):
            trial._modules[name] = layer = nn.Linear(*shape)
            for weight in layer.parameters():
                weight.normal_(generator=generator)
        x = torch.randn(2, 3, IN, generator=generator)
        return all(_agrees(trial, size * x) for size in SIZES)


def _agrees(trial: Any, x: Tensor) -> bool:
    try:
        expected = type(trial).forward(trial, x)
        found = trial.down_proj(trial.act_fn(trial.gate_proj(x)) * trial.up_proj(x))
    except REFUSALS:
        return False
    return isinstance(expected, Tensor) and bool((found - expected).abs().max() <= CLOSE * expected.abs().max())


def _forward(module: Any, theirs: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    if len(args) != 1 or kwargs or _keeps_all.get() or not torch.is_grad_enabled():
        return theirs(*args, **kwargs)
    (x,) = args
    gate, up = module.gate_proj(x), module.up_proj(x)
    if not (gate.requires_grad and up.requires_grad):
        return module.down_proj(module.act_fn(gate) * up)  # type: ignore[no-any-return]
    product: Tensor = _Gated.apply(gate, up, module.act_fn)  # type: ignore[no-untyped-call]
    with _recomputed(product, _Factors(gate.detach(), up.detach(), module.act_fn)):
        found: Tensor = module.down_proj(product)
    return found


@dataclass(frozen=True, slots=True)
class _Factors:
    """What the product is computed from."""

    gate: Tensor
    up: Tensor
    act: Activation

    def product(self) -> Tensor:
        with torch.no_grad():
            return self.act(self.gate) * self.up


@dataclass(frozen=True, slots=True)
class _Again:
    """Stands for the product in what an operation saves for its backward."""

    factors: _Factors
    shape: torch.Size


def _recomputed(product: Tensor, factors: _Factors) -> saved_tensors_hooks:
    """Make operations inside the context save the factors in place of the product or a reshaped view of it."""
    storage, size = product.untyped_storage()._cdata, product.numel()

    def pack(saved: Tensor) -> Tensor | _Again:
        same = saved.untyped_storage()._cdata == storage and saved.numel() == size and saved.is_contiguous()
        return _Again(factors, saved.shape) if same else saved

    def unpack(kept: Tensor | _Again) -> Tensor:
        return kept.factors.product().view(kept.shape) if isinstance(kept, _Again) else kept

    return saved_tensors_hooks(pack, unpack)


class _Gated(torch.autograd.Function):
    """act(gate) · up, with the gradients of autograd."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: Activation) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act = act
        return act(gate) * up

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            leaf = gate.detach().requires_grad_()
            active = ctx.act(leaf)
        (of_gate,) = torch.autograd.grad(active, leaf, gradients[0] * up)
        return of_gate, gradients[0] * active.detach(), None
