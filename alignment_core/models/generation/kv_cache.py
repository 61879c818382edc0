"""The KV cache of responses while they are sampled."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


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


@dataclass
class SlotPlaces:
    """Where the next pass writes, shared by all layers of a `SlotCache`.

    Attributes:
        rows: index of every slot.
        positions: column in which each slot's next token is written.
        seen: number of columns that the next token sees at most.
        prompts: slots whose prompts are read, and the row of the pass that each of them takes, or None in its place if
            that is the row of the same index; None for a next token.
    """

    rows: Tensor
    positions: Tensor
    seen: int
    prompts: tuple[Tensor, Tensor | None] | None = None


class SlotCache(Cache):  # type: ignore[misc]
    """Keys and values of responses that begin at different times. Each has a slot, and starts in its first column.

    Attributes:
        windows: how far back the layers see, without repeats; None for a layer that sees everything.
    """

    def __init__(self, model: PreTrainedModel, places: SlotPlaces, tokens: int) -> None:
        """
        Args:
            places: shared with the caller, who sets them before every pass.
            tokens: columns of a slot.

        Raises:
            ValueError: the model keeps more than keys and values.
        """
        layers = DynamicCache(config=model.config).layers
        if not layers or any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
            raise ValueError("layers with states of their own have no slots")
        self.windows: set[int | None] = {getattr(layer, "sliding_window", None) for layer in layers}
        super().__init__(layers=[_SlotLayer(places, tokens) for _ in layers])

    def copy(self, sources: Sequence[int], slots: Sequence[int], columns: int) -> None:
        """Copy the first columns of slots into other slots, pair by pair."""
        for layer in self.layers:
            layer.copy(sources, slots, columns)

    def keep(self, rows: Tensor) -> None:
        """Keep only these slots."""
        for layer in self.layers:
            layer.keep(rows)


class _SlotLayer(DynamicLayer):  # type: ignore[misc]
    def __init__(self, places: SlotPlaces, tokens: int) -> None:
        super().__init__()
        self.places, self.tokens = places, tokens
        self._buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        places = self.places
        if not self._buffers:
            # Zeros, because a column that is not seen is multiplied by 0, which NaN survives.
            self._buffers = [
                states.new_zeros(len(places.rows), states.shape[1], self.tokens, states.shape[-1])
                for states in (key_states, value_states)
            ]
        if places.prompts is not None:
            return self._read_prompts(key_states, value_states, *places.prompts)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[places.rows, :, places.positions] = states[:, :, 0]
        keys, values = (buffer[:, :, : places.seen] for buffer in self._buffers)
        return keys, values

    def _read_prompts(
        self, key_states: Tensor, value_states: Tensor, slots: Tensor, taken: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Write the states of prompts, which see only themselves."""
        written = [buffer[:, :, : key_states.shape[-2]] for buffer in self._buffers]
        for part, states in zip(written, (key_states, value_states), strict=True):
            part.index_copy_(0, slots, states if taken is None else states[taken])
        if taken is None and len(slots) == len(self.places.rows):  # frees the memory of the states
            return written[0], written[1]
        return key_states, value_states

    def copy(self, sources: Sequence[int], slots: Sequence[int], columns: int) -> None:
        for buffer in self._buffers:
            for source, slot in zip(sources, slots, strict=True):
                buffer[slot, :, :columns] = buffer[source, :, :columns]

    def keep(self, rows: Tensor) -> None:
        for i in range(len(self._buffers)):  # one after the other, so that only one exists twice
            self._buffers[i] = self._buffers[i][rows]
