"""Run the last layer's feed-forward part only for the tokens whose states are read.

Nothing uses the output of the other tokens, because attention, which reads neighboring tokens, comes before. Prompt
tokens, and all tokens but the last of a scored sequence, thereby save two thirds of a layer, forward and backward.
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

from alignment_core.models.passes.packing import current_arrangement, outputs_agree, padded
from alignment_core.plugin_api import TokenSequence

NAMES = ("mlp", "feed_forward")
"""Attribute names of this part in the architectures. Whether it behaves as its name suggests is tested."""


def skip_unread_tokens(model: PreTrainedModel, body: Callable[..., Any]) -> Callable[[], None]:
    """Make the last layer's feed-forward part skip tokens that nothing reads. Undone if that changes the states.

    Returns:
        A function that undoes it.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    parts = [part for name in NAMES if layers and isinstance(part := getattr(layers[-1], name, None), nn.Module)]
    if len(parts) != 1:
        return lambda: None
    before = parts[0].forward
    parts[0].forward = partial(_forward, before)
    undo = partial(setattr, parts[0], "forward", before)
    if model.device.type != "meta" and not _changes_nothing(model, body):
        undo()
    return undo


def _forward(forward: Callable[..., Any], states: Tensor, *args: Any, **kwargs: Any) -> Any:
    arrangement = current_arrangement()
    # Further arguments may have another shape than the states.
    if arrangement is None or arrangement.read is None or args or kwargs:
        return forward(states, *args, **kwargs)
    read, width = arrangement.read.to(states.device, non_blocking=True), states.shape[-1]
    found = forward(states.view(1, -1, width).index_select(1, read))
    if not isinstance(found, Tensor):  # experts that also return their router's choice
        return forward(states)
    everywhere = found.new_zeros(1, states.numel() // width, width)
    return everywhere.index_copy(1, read, found).view(states.shape)


def _changes_nothing(model: PreTrainedModel, body: Callable[..., Any]) -> bool:
    read = torch.tensor([2, 5, 6, 9, 17])
    whole = replace(padded([TokenSequence(tuple(range(1, length)), 1) for length in (9, 6, 4)], 0), places=[read])
    return outputs_agree(model, body, whole.read_at(read), [whole])
