"""Plain LoRA with less memory traffic than in peft: matrix products add their results in place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from torch.nn.functional import linear


def use_fast_lora(layer: Any) -> None:
    """Make the layer compute W·x + s·B·(A·x) with products that add in place, forward and backward.

    peft scales and adds the (tokens, width) update in separate passes, forward and backward, and under autocast keeps a
    copy of the input in every layer that reads it. Everything except plain LoRA on a linear layer (DoRA, a bias in B,
    an embedding, a convolution, a parameter of a module that is not a linear layer, such as experts) is left to peft.
    """
    if isinstance(next(iter(layer.lora_A.values()), None), nn.Linear) and not isinstance(layer, ParamWrapper):
        layer.forward = partial(_forward, layer, type(layer).forward)


def _forward(layer: Any, peft_forward: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    (name,) = layer.active_adapters
    base = layer.base_layer
    if layer.disable_adapters or name not in layer.lora_A:
        return base(x, *args, **kwargs)  # type: ignore[no-any-return]
    down, up, scale = layer.lora_A[name], layer.lora_B[name], layer.scaling[name]
    cast = torch.is_autocast_enabled(x.device.type)
    if name in layer.lora_variant or up.bias is not None or not (cast or x.dtype == down.weight.dtype):
        return peft_forward(layer, x, *args, **kwargs)
    drop = layer.lora_dropout[name]
    if type(base) is nn.Linear and not any(p is not None and p.requires_grad for p in (base.weight, base.bias)):
        x = x.to(base.weight.dtype)
        dropped = drop(x)
        seen = None if dropped is x else dropped
        found: Tensor = _Lora.apply(x, seen, base.weight, base.bias, down.weight, up.weight, scale)  # type: ignore[no-untyped-call]
        return found
    result = base(x, *args, **kwargs)
    low = linear(drop(x), down.weight)
    added = torch.addmm(result.flatten(0, -2), low.flatten(0, -2), up.weight.t(), alpha=scale)
    return added.view(result.shape).to(result.dtype)


class _Lora(torch.autograd.Function):
    """W·x + b + s·B·A·d with W frozen, in W's dtype. The update and its gradient are added in place."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
    ) -> Tensor:
        """Return the layer's output. d is `dropped`, or x if that is None."""
        seen = (x if dropped is None else dropped).flatten(0, -2)
        down, up = down.to(weight.dtype), up.to(weight.dtype)
        low = (seen @ down.t()).to(weight.dtype)  # autocast computes in bf16, also where the weight is kept in float32
        result = x.new_empty(*x.shape[:-1], weight.shape[0])
        flat, rows = result.view(-1, weight.shape[0]), x.flatten(0, -2)
        if bias is None:
            torch.mm(rows, weight.t(), out=flat)
        else:
            torch.addmm(bias, rows, weight.t(), out=flat)
        flat.addmm_(low, up.t(), alpha=scale)
        ctx.save_for_backward(seen, low, weight, down, up)
        ctx.scale, ctx.shape, ctx.drops = scale, x.shape, dropped is not None
        return result  # not a view: some architectures change the output in place

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, d, A and B. Those of A and B are in float32, like the weights."""
        seen, low, weight, down, up = ctx.saved_tensors
        above = gradients[0].flatten(0, -2)
        of_low = (above @ up).mul_(ctx.scale)
        of_x = of_dropped = of_down = of_up = None
        if ctx.needs_input_grad[4]:
            of_down = (of_low.t() @ seen).float()
        if ctx.needs_input_grad[5]:
            of_up = (above.t() @ low).float().mul_(ctx.scale)
        if ctx.needs_input_grad[0]:
            of_x = above @ weight
            if ctx.drops:
                of_dropped = (of_low @ down).view(ctx.shape)
            else:
                of_x.addmm_(of_low, down)
            of_x = of_x.view(ctx.shape)
        return of_x, of_dropped, None, None, of_down, of_up, None
