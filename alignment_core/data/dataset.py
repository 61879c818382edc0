"""The data set that every later stage reads: token rows by kind and split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignment_core.data.conversion import Chosen
from alignment_core.data.parts import DEMONSTRATION, FEEDBACK, KINDS, PREFERENCE, PROMPT
from alignment_core.data.rendering import Renderer
from alignment_core.data.rows import StoredRows
from alignment_core.data.shards import Shards, ShardWriter
from alignment_core.data.writing import write_split
from alignment_core.plugin_api import Row
from alignment_core.record_format import Reading
from alignment_core.records import Conversation, Demonstration, LabelledResponse, PreferencePair, Prompt

SPLITS = ("train", "held_out")


@dataclass(frozen=True)
class Records:
    """Canonical records of one split, by kind."""

    demonstrations: Sequence[Demonstration] = ()
    preferences: Sequence[PreferencePair] = ()
    feedback: Sequence[LabelledResponse] = ()
    prompts: Sequence[Prompt] = ()


@dataclass(frozen=True)
class Split:
    """The rows of one split, by kind; they lie on disk until asked for.

    Sequences and values are named as in `plugin_api.Row`; a demonstration has the one sequence `demonstration`.
    """

    demonstrations: Sequence[Row]
    preferences: Sequence[Row]
    feedback: Sequence[Row]
    prompts: StoredRows

    def messages(self, row: Row) -> Conversation:
        """The conversation of a row of `prompts`.

        Raises:
            KeyError: the row is not one of this split's prompts.
        """
        return tuple(json.loads(self.prompts.messages(row.id)))


@dataclass(frozen=True)
class Dataset:
    """What ingestion (and ranking) made: rows to learn from, and rows of prompts that are kept away from training."""

    train: Split
    held_out: Split


def read_dataset(*folders: Path) -> Dataset:
    """The data set of one or more folders, joined in order (the data itself and ranked samples, say)."""

    def split(name: str) -> Split:
        rows = {kind: StoredRows([folder / name for folder in folders], kind) for kind in KINDS}
        return Split(rows["demonstrations"], rows["preferences"], rows["feedback"], rows["prompts"])

    return Dataset(train=split("train"), held_out=split("held_out"))


def write_dataset(folder: Path, train: Records, held_out: Records, renderer: Renderer) -> dict[str, Any]:
    """Write records as a data set: `<split>/records.jsonl` for people, Arrow files for the stages.

    Records that cannot be rendered are left out and counted.

    Returns:
        `rows` per split and kind, and `left_out` per reason.
    """
    rows: dict[str, dict[str, int]] = {}
    left_out: Counter[str] = Counter()
    for name, records in zip(SPLITS, (train, held_out), strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        shard = folder / f".{name}.shard"
        with ShardWriter(shard, renderer) as writer:
            for kind in KINDS:
                for record in getattr(records, kind):
                    writer.add(Reading(record), record.origin)
        shards = Shards([shard], [[""]], folder)
        left_out.update(shards.reasons())
        rows[name] = write_split(folder / name, shards, _all(shards), renderer.max_length).rows
        shard.unlink()
    return {"rows": rows, "left_out": dict(left_out)}


def _all(shards: Shards) -> Chosen:
    """Every record as the row that it is."""
    kind, fits = shards.numbers["kind"], shards.numbers["fits"]
    found = [np.flatnonzero((kind == index) & fits) for index in range(len(KINDS))]
    feedback = found[FEEDBACK]
    return Chosen(
        demonstrations=found[DEMONSTRATION],
        preferences=(found[PREFERENCE], found[PREFERENCE]),
        feedback=(feedback, np.zeros(len(feedback), dtype=np.int64), shards.numbers["sign"][feedback]),
        prompts=found[PROMPT],
    )
