"""A part of the people's judgements, by prompt, for a reward model that only judges."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, overload

from alignment_core.data.dataset import Split
from alignment_core.data.rows import StoredRows
from alignment_core.plugin_api import Row


def in_fold(split: Split, judge_fraction: float, part: Literal["judge", "rest"]) -> Split:
    """The split with those of its pairs and labelled responses whose prompt is in this part.

    A prompt's part is decided by its text, whatever else there is; demonstrations and prompts stay as they are.

    Args:
        split: the rows.
        judge_fraction: share of the prompts that the judge's part has.
        part: the judge's, or what everything else learns from.
    """

    def chosen(rows: Sequence[Row]) -> Sequence[Row]:
        assert isinstance(rows, StoredRows)
        judges = (_place(rows.conversation(index)) < judge_fraction for index in range(len(rows)))
        return ChosenRows(rows, [index for index, is_his in enumerate(judges) if is_his == (part == "judge")])

    return replace(split, preferences=chosen(split.preferences), feedback=chosen(split.feedback))


def _place(text: str) -> float:
    """A number from 0 to 1 that the text decides."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=b"judge").digest()
    return int.from_bytes(digest, "big") / 2**64


class ChosenRows(Sequence[Row]):
    """Some rows of a longer list, each made when it is asked for."""

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
