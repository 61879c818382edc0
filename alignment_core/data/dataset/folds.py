"""Divide pairs and labelled responses by prompt into a part for a reward model that only judges, and the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, overload

from alignment_core.data.dataset.splits import Split
from alignment_core.data.dataset.stored_rows import StoredRows
from alignment_core.plugin_api import Row


def rows_in_fold(split: Split, judge_fraction: float, part: Literal["judge", "rest"]) -> Split:
    """Return the split with only those pairs and labelled responses whose prompt is in `part`.

    The text of a prompt alone decides its part. Demonstrations and prompts are kept unchanged.

    Args:
        split: the rows.
        judge_fraction: fraction of the prompts in the judge's part.
        part: `judge`: the rows to train the judge on. `rest`: the rows to train everything else on.
    """

    def chosen(rows: Sequence[Row]) -> Sequence[Row]:
        assert isinstance(rows, StoredRows)
        for_judge = (_place(rows.conversation(index)) < judge_fraction for index in range(len(rows)))
        return ChosenRows(rows, [index for index, is_judge in enumerate(for_judge) if is_judge == (part == "judge")])

    return replace(split, preferences=chosen(split.preferences), feedback=chosen(split.feedback))


def _place(text: str) -> float:
    """Return a number from 0 to 1 that depends only on the text."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=b"judge").digest()
    return int.from_bytes(digest, "big") / 2**64


class ChosenRows(Sequence[Row]):
    """Selected rows of a longer sequence. Each row is built when it is accessed."""

    def __init__(self, rows: Sequence[Row], places: Sequence[int]) -> None:
        self._rows, self._places = rows, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self._rows[place] for place in self._places[index]]
        return self._rows[self._places[index]]

    def __iter__(self) -> Iterator[Row]:
        return (self._rows[place] for place in self._places)
