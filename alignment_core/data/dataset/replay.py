"""Mix a share of older rows into new training rows to prevent forgetting."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import overload

from alignment_core.data.dataset.folds import ChosenRows
from alignment_core.data.dataset.splits import Split
from alignment_core.plugin_api import Row


def with_replay(new: Split, old: Split, everything: Split, share: float, seed: str) -> Split:
    """Return the new pairs and labelled responses mixed with old ones.

    Old rows make up `share` of each kind. If there are fewer old rows than that, all of them are used.

    Args:
        new: the new rows.
        old: the rows from before.
        everything: both together. Its demonstrations and prompts are kept unchanged.
        share: fraction of old rows in the mix, 0 ≤ share < 1.
        seed: decides which old rows are sampled.
    """

    def mixed(kind: str) -> Sequence[Row]:
        fresh, older = getattr(new, kind), getattr(old, kind)
        count = min(len(older), round(len(fresh) * share / (1 - share)))
        places = sorted(random.Random(f"{seed}/{kind}").sample(range(len(older)), count))
        return _Joined([fresh, ChosenRows(older, places)])

    return replace(everything, preferences=mixed("preferences"), feedback=mixed("feedback"))


class _Joined(Sequence[Row]):
    """Several sequences of rows, concatenated. Each row is built when it is accessed."""

    def __init__(self, parts: Sequence[Sequence[Row]]) -> None:
        self._parts = parts
        self._ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        part = bisect_right(self._ends, place)
        return self._parts[part][place - (self._ends[part - 1] if part else 0)]

    def __iter__(self) -> Iterator[Row]:
        return (row for part in self._parts for row in part)
