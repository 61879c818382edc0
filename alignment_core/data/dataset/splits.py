"""The data set that all later stages read: token rows by kind and split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment_core.data.dataset.kinds import KINDS
from alignment_core.data.dataset.stored_rows import StoredRows
from alignment_core.plugin_api import Row
from alignment_core.records import Conversation

SPLITS = ("train", "held_out")


@dataclass(frozen=True)
class Split:
    """The rows of one split, by kind. They stay on disk until they are accessed.

    Sequences and values are named as in `plugin_api.Row`. A demonstration has a single sequence, `demonstration`.
    """

    demonstrations: Sequence[Row]
    preferences: Sequence[Row]
    feedback: Sequence[Row]
    prompts: StoredRows

    def messages(self, row: Row) -> Conversation:
        """Return the conversation of a row of `prompts`.

        Raises:
            KeyError: the row is not one of this split's prompts.
        """
        return tuple(json.loads(self.prompts.messages(row.id)))


@dataclass(frozen=True)
class Dataset:
    """The output of ingestion (and ranking): rows to train on, and rows whose prompts are held out from training."""

    train: Split
    held_out: Split


def read_dataset(*folders: Path) -> Dataset:
    """Read the data sets in one or more folders, joined in order (for example ingested data and ranked samples)."""

    def split(name: str) -> Split:
        rows = {kind: StoredRows([folder / name for folder in folders], kind) for kind in KINDS}
        return Split(rows["demonstrations"], rows["preferences"], rows["feedback"], rows["prompts"])

    return Dataset(train=split("train"), held_out=split("held_out"))
