"""Plain LoRA in two products less traffic than peft's own: the update is added by the product that makes it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def run_plainly(layer: Any) -> None:
    """Let the layer compute W·x + B·(s·A·x) as one product of small matrices and one that adds to W·x.

    peft scales and adds the (tokens, width) update in passes of their own, forward and backward, and under autocast
    keeps a copy of the input in every layer that reads it. What is no plain LoRA of a linear layer (DoRA, a bias in B,
    an embedding, a convolution) stays with peft.
    """
    if isinstance(next(iter(layer.lora_A.values()), None), nn.Linear):
        layer.forward = partial(_forward, layer, type(layer).forward)


def _forward(layer: Any, of_peft: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    (name,) = layer.active_adapters
    if layer.disable_adapters or name not in layer.lora_A:
        return layer.base_layer(x, *args, **kwargs)  # type: ignore[no-any-return]
    down, up = layer.lora_A[name], layer.lora_B[name]
    cast = torch.is_autocast_enabled(x.device.type)
    if name in layer.lora_variant or up.bias is not None or not (cast or x.dtype == down.weight.dtype):
        return of_peft(layer, x, *args, **kwargs)
    result = layer.base_layer(x, *args, **kwargs)
    low = linear(layer.lora_dropout[name](x), down.weight) * layer.scaling[name]
    added = torch.addmm(result.flatten(0, -2), low.flatten(0, -2), up.weight.t())
    return added.view(result.shape).to(result.dtype)
