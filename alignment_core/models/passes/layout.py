"""How attention splits a packed row, with the masks and indices that follow from it, made once for all layers."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens of the row that attend to each other causally, and to their complete prompt.

    Attributes:
        start: index of its first token in the row.
        stop: index after its last token.
        prompt: start and stop of the shared prompt that it continues; (0, 0) if it begins a sequence.
    """

    start: int
    stop: int
    prompt: tuple[int, int] = (0, 0)

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def before(self) -> int:
        """Number of prompt tokens that it attends to."""
        return self.prompt[1] - self.prompt[0]


@dataclass(frozen=True, slots=True)
class Segments:
    """The pieces as segments of queries and keys, for attention with variable lengths.

    Attributes:
        index: for each key, its token in the row, shape (keys,): of each piece, first the prompt and then its own
            tokens. None if no prompt is shared, so that the keys are the row itself.
        query_ends: where the segments of queries begin and end, shape (pieces + 1,), int32.
        key_ends: the same for the keys.
        longest_query: tokens in the longest segment of queries.
        longest_key: tokens in the longest segment of keys.
    """

    index: Tensor | None
    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The pieces of a row in order, without gaps. What its layers need is made by the first one that asks."""

    pieces: tuple[Piece, ...]
    _made: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def longest(self) -> int:
        """Return the most tokens that a token attends to, itself included."""
        return max(piece.before + piece.length for piece in self.pieces)

    def mask(self, length: int, before: int, window: int | None, like: Tensor) -> Tensor | None:
        """Return what to add to the scores of `length` queries that continue `before` keys; None if plainly causal.

        Args:
            length: number of queries, the last tokens of the keys.
            before: number of keys before the first query.
            window: number of last tokens that a token attends to, itself included; None for all.
            like: a tensor with the dtype and device of the queries.

        Returns:
            0 or -∞, shape (length, before + length).
        """
        if not before and (window is None or length <= window):
            return None
        name = (length, before, window, like.dtype, like.device)
        if name not in self._made:
            self._made[name] = _mask(length, before, window, like)
        mask: Tensor = self._made[name]
        return mask

    def segments(self, device: torch.device) -> Segments:
        """Return the pieces as segments, on this device."""
        if device not in self._made:
            self._made[device] = self._segments(device)
        segments: Segments = self._made[device]
        return segments

    def _segments(self, device: torch.device) -> Segments:
        keys = [piece.before + piece.length for piece in self.pieces]
        queries = [piece.length for piece in self.pieces]
        index = None
        if any(piece.before for piece in self.pieces):
            parts = [(piece.prompt, (piece.start, piece.stop)) for piece in self.pieces]
            index = torch.cat([torch.arange(*part) for pair in parts for part in pair]).to(device)
        query_ends, key_ends = (
            torch.tensor([0, *accumulate(sizes)], dtype=torch.int32).to(device) for sizes in (queries, keys)
        )
        return Segments(index, query_ends, key_ends, max(queries), max(keys))


def _mask(length: int, before: int, window: int | None, like: Tensor) -> Tensor:
    tokens = torch.arange(before + length, device=like.device)
    distance = tokens[before:].unsqueeze(1) - tokens
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))
