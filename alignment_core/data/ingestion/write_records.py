"""Write canonical records as a data set, without reading source files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignment_core.data.dataset.kinds import DEMONSTRATION, FEEDBACK, KINDS, PREFERENCE, PROMPT
from alignment_core.data.dataset.splits import SPLITS
from alignment_core.data.ingestion.conversion import Chosen
from alignment_core.data.ingestion.shards import Shards, ShardWriter
from alignment_core.data.ingestion.writing import write_split
from alignment_core.data.rendering.renderer import Renderer
from alignment_core.records import Demonstration, LabelledResponse, PreferencePair, Prompt
from alignment_core.records.format import Reading


@dataclass(frozen=True)
class Records:
    """The canonical records of one split, by kind."""

    demonstrations: Sequence[Demonstration] = ()
    preferences: Sequence[PreferencePair] = ()
    feedback: Sequence[LabelledResponse] = ()
    prompts: Sequence[Prompt] = ()


def write_dataset(folder: Path, train: Records, held_out: Records, renderer: Renderer) -> dict[str, Any]:
    """Write records as a data set: `<split>/records.jsonl` for people, Arrow files for the stages.

    Records that cannot be rendered are left out and counted.

    Returns:
        `rows`: number of rows per split and kind. `left_out`: number of records per reason.
    """
    rows: dict[str, dict[str, int]] = {}
    left_out: Counter[str] = Counter()
    for name, records in zip(SPLITS, (train, held_out), strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        shard = folder / f".{name}.shard"
        with ShardWriter(shard, renderer) as writer:
            for kind in KINDS:
                for record in getattr(records, kind):
                    if refused := writer.add(Reading(record), record.origin):
                        left_out[refused.reason] += 1
        shards = Shards([shard], [[""]], folder)
        left_out.update(shards.reasons())
        rows[name] = write_split(folder / name, shards, _all(shards), renderer.max_length).rows
        shard.unlink()
    return {"rows": rows, "left_out": dict(left_out)}


def _all(shards: Shards) -> Chosen:
    """Return every record as a row of its own kind, without any conversion."""
    kind, fits = shards.numbers["kind"], shards.numbers["fits"]
    records = [np.flatnonzero((kind == index) & fits) for index in range(len(KINDS))]
    feedback = records[FEEDBACK]
    return Chosen(
        demonstrations=records[DEMONSTRATION],
        preferences=(records[PREFERENCE], records[PREFERENCE]),
        feedback=(feedback, np.zeros(len(feedback), dtype=np.int64), shards.numbers["sign"][feedback]),
        prompts=records[PROMPT],
    )
