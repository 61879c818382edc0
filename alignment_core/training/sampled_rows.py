"""Rows of which only a sample is at hand, to count the steps of a stage that learns from all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import overload

from alignment_core.plugin_api import Row
from alignment_core.training.rows import Rows


class SampledRows(Sequence[Row]):
    """As many rows as there are in all. Those that are not in the sample are taken to be like those that are.

    Args:
        sample: the rows of the sample.
        count: the number of all rows. It is 0 if the sample is empty.
    """

    def __init__(self, sample: Sequence[Row], count: int) -> None:
        self.sample = sample
        self._count = count if sample else 0

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return self.sample[index % self._count % len(self.sample)]


def samples_of(rows: Rows) -> Rows:
    """Return the rows to learn from that are at hand. There are as many held-out prompts as before."""
    at_hand = {
        field.name: found.sample if isinstance(found := getattr(rows, field.name), SampledRows) else found
        for field in fields(rows)
    }
    return Rows(**{**at_hand, "held_out_prompts": rows.held_out_prompts})
