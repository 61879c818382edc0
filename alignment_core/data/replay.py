"""New rows to learn from with a share of older ones among them, so that what was learned is not forgotten."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import overload

from alignment_core.data.dataset import Split
from alignment_core.data.folds import ChosenRows
from alignment_core.plugin_api import Row


def with_replay(new: Split, old: Split, everything: Split, share: float, seed: str) -> Split:
    """The new pairs and labelled responses, and as many old ones as make `share` of each kind; all if they are fewer.

    Args:
        new: what came in.
        old: what was there before.
        everything: both; its demonstrations and prompts stay as they are.
        share: of the older rows in the mix, from 0 up to 1.
        seed: decides which old rows are taken.
    """

    def mixed(kind: str) -> Sequence[Row]:
        fresh, older = getattr(new, kind), getattr(old, kind)
        count = min(len(older), round(len(fresh) * share / (1 - share)))
        places = sorted(random.Random(f"{seed}/{kind}").sample(range(len(older)), count))
        return _Joined([fresh, ChosenRows(older, places)])

    return replace(everything, preferences=mixed("preferences"), feedback=mixed("feedback"))


class _Joined(Sequence[Row]):
    """Rows of several lists in a row, each made when it is asked for."""

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
