"""The KV cache of responses while they are sampled."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


def cache_argument(model: PreTrainedModel) -> str | None:
    """Return the name of the model's cache argument.

    None if it has none: such a model reads the complete sequence again for every token.
    """
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in ("past_key_values", "cache_params") if name in parameters), None)


def cache_for(model: PreTrainedModel, tokens: int) -> DynamicCache:
    """Return an empty cache for rows of at most `tokens` tokens, with the model's types of layers."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_RoomyLayer(tokens) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Writes each token into preallocated memory. The transformers layer copies the complete cache for every token."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._buffers = [s.new_empty(*s.shape[:-2], self.tokens, s.shape[-1]) for s in (key_states, value_states)]
        self._show(0)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.keys.shape[-2]
        after = before + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., before:after, :] = states
        self._show(after)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if not self.is_initialized:  # a layer that shares another layer's keys and values
            return
        held = self.keys.shape[-2]
        for i in range(2):
            self._buffers[i] = self._buffers[i][beam_idx]
        self._show(held)

    def _show(self, held: int) -> None:
        self.keys, self.values = (buffer[..., :held, :] for buffer in self._buffers)
