"""The last layer's feed-forward part runs for those tokens alone whose states are read.

No other token's is seen by anyone: attention, which looks at neighbours, is over by then. A prompt's tokens, and all
but the last where a sequence is scored, so save two thirds of a layer, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from alignment_core.models.packing import agree, arrangement_in_force, padded
from alignment_core.plugin_api import TokenSequence

NAMES = ("mlp", "feed_forward")
"""What architectures call the part; whether it is what it is called is found out by trying it."""


def finish_only_what_is_read(model: PreTrainedModel, body: Callable[..., Any]) -> None:
    """Let the last layer's feed-forward part leave out what no one reads; undone where that changes what is read."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    parts = [part for name in NAMES if layers and isinstance(part := getattr(layers[-1], name, None), nn.Module)]
    if len(parts) != 1:
        return
    before = parts[0].forward
    parts[0].forward = partial(_forward, before)
    if model.device.type != "meta" and not _changes_nothing(model, body):
        parts[0].forward = before


def _forward(forward: Callable[..., Any], states: Tensor, *args: Any, **kwargs: Any) -> Any:
    arrangement = arrangement_in_force()
    # With more than the states, the part reads something of another shape.
    if arrangement is None or arrangement.read is None or args or kwargs:
        return forward(states, *args, **kwargs)
    read, width = arrangement.read.to(states.device), states.shape[-1]
    found = forward(states.view(1, -1, width).index_select(1, read))
    everywhere = found.new_zeros(1, states.numel() // width, width)
    return everywhere.index_copy(1, read, found).view(states.shape)


def _changes_nothing(model: PreTrainedModel, body: Callable[..., Any]) -> bool:
    read = torch.tensor([2, 5, 6, 9, 17])
    whole = replace(padded([TokenSequence(tuple(range(1, length)), 1) for length in (9, 6, 4)], 0), places=[read])
    return agree(model, body, whole.read_at(read), whole)
