"""The keys and values of responses that are being sampled."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


def cache_argument(model: PreTrainedModel) -> str | None:
    """The name by which the model takes a cache; None: it takes none, and reads all that was said for every token."""
    takes = inspect.signature(model.forward).parameters
    return next((name for name in ("past_key_values", "cache_params") if name in takes), None)


def cache_for(model: PreTrainedModel, tokens: int) -> DynamicCache:
    """An empty cache, of the kinds of layer that the model has, for rows of at most so many tokens."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_RoomyLayer(tokens) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Writes a token where room was left for it; transformers' own copies all that is there for every token."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._rooms = [s.new_empty(*s.shape[:-2], self.tokens, s.shape[-1]) for s in (key_states, value_states)]
        self._show(0)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.keys.shape[-2]
        after = before + key_states.shape[-2]
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[..., before:after, :] = states
        self._show(after)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if not self.is_initialized:  # a layer that reads another's keys and values
            return
        held = self.keys.shape[-2]
        for i in range(2):
            self._rooms[i] = self._rooms[i][beam_idx]
        self._show(held)

    def _show(self, held: int) -> None:
        self.keys, self.values = (room[..., :held, :] for room in self._rooms)
