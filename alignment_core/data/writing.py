"""Writes one split of a data set: records as JSON lines for people, tokens and rows as Arrow for the stages."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignment_core.data.mismatch import partners
from alignment_core.data.parts import DEMONSTRATION, FEEDBACK, KINDS, PREFERENCE, PROMPT
from alignment_core.data.rows import TOKENS, index_schema, token_schema
from alignment_core.data.selection import Chosen, mixed, repeats
from alignment_core.data.shards import Shards, origin

RECORDS = "records.jsonl"
INDEX_ROWS = 2**16
"""Rows of a kind's file that are written together."""
COMPLETIONS = {DEMONSTRATION: ("answer",), PREFERENCE: ("chosen", "rejected"), FEEDBACK: ("response",), PROMPT: ()}
"""What a record's completions are called in `records.jsonl`, by its kind."""


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        rows: number of rows, by kind.
        unmatched: labelled rows for which there is no other prompt to take a mismatched response from.
    """

    rows: dict[str, int]
    unmatched: int


@dataclass(frozen=True)
class _Index:
    """The rows of one kind: their names, the records that they are made of, and the other columns of their file."""

    names: Any
    copies: Any
    records: dict[str, Any]
    columns: dict[str, Any]

    def __len__(self) -> int:
        return len(self.names)

    def ids(self, places: Any) -> list[str]:
        """The ids of some rows; a row's copies are numbered."""
        names, copies = self.names[places].tolist(), self.copies[places].tolist()
        return [f"{name:016x}-{copy + 1}" if copy else f"{name:016x}" for name, copy in zip(names, copies, strict=True)]


def write_split(folder: Path, shards: Shards, chosen: Chosen, max_length: int, weights: Any = None) -> Written:
    """Fill the folder of a split.

    Args:
        folder: is made.
        shards: the records.
        chosen: the rows to write.
        max_length: longest sequence in tokens.
        weights: of each shard; above 1 repeats its rows. None: each row once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    feedback, unmatched = _feedback(shards, chosen, max_length, weights)
    kinds = {
        "demonstrations": _plain(shards, chosen.demonstrations, DEMONSTRATION, weights, "first"),
        "preferences": _preferences(shards, chosen, weights),
        "feedback": feedback,
        "prompts": _plain(shards, chosen.prompts, PROMPT, weights),
    }
    used = np.unique(np.concatenate([column for index in kinds.values() for column in index.records.values()]))
    for kind, index in kinds.items():
        _write_index(folder, kind, index, used, max_length)
    _write_records(folder, shards, used.astype(np.int64), kinds)
    return Written({kind: len(index) for kind, index in kinds.items()}, unmatched)


# --- which rows ---------------------------------------------------------------------------------------------------


def _plain(shards: Shards, records: Any, kind: int, weights: Any, *completions: str) -> _Index:
    """Rows that are one record each, named by kind, prompt and completions."""
    places, copies = _repeated(shards, records, weights)
    records = records[places]
    hashes = [shards.numbers[f"{name}_hash"][records] for name in ("prompt", *completions)]
    return _Index(mixed(np.full(len(records), kind), *hashes), copies, {"record": records}, {})


def _preferences(shards: Shards, chosen: Chosen, weights: Any) -> _Index:
    numbers, (good, bad) = shards.numbers, chosen.preferences
    places, copies = _repeated(shards, good, weights)
    good, bad = good[places], bad[places]
    given = good == bad
    rejected = np.where(given, numbers["second_hash"][bad], numbers["first_hash"][bad])
    names = mixed(np.full(len(good), PREFERENCE), numbers["prompt_hash"][good], numbers["first_hash"][good], rejected)
    margins = np.nan_to_num(np.where(given, numbers["margin"][good], np.nan))
    return _Index(names, copies, {"chosen": good, "rejected": bad}, {"margin": margins})


def _feedback(shards: Shards, chosen: Chosen, max_length: int, weights: Any) -> tuple[_Index, int]:
    numbers = shards.numbers
    places, copies = _repeated(shards, chosen.feedback[0], weights)
    records, sides, signs = (values[places] for values in chosen.feedback)
    second = sides == 1
    responses = np.where(second, numbers["second_hash"][records], numbers["first_hash"][records])
    lengths = np.where(second, numbers["second_tokens"][records], numbers["first_tokens"][records])
    prompts = numbers["prompt_hash"][records]
    names, asked = (
        mixed(np.full(len(records), FEEDBACK), prompts, responses),
        np.where(prompts != 0, prompts, responses),
    )
    others = partners(mixed(names, copies), asked, numbers["head_tokens"][records], lengths, max_length)
    source = np.where(others < 0, np.arange(len(records)), others)
    index = _Index(
        names,
        copies,
        {"record": records, "other": records[source]},
        {
            "side": sides,
            "desirable": (signs > 0).astype(np.float64),
            "weight": numbers["weight"][records],
            "other_side": sides[source],
        },
    )
    return index, int(np.count_nonzero(others < 0))


def _repeated(shards: Shards, records: Any, weights: Any) -> tuple[Any, Any]:
    """Places in `records` as often as they are written, and the number of each copy."""
    times = np.ones(len(records), dtype=np.int64) if weights is None else repeats(shards.numbers, records, weights)
    places = np.repeat(np.arange(len(records)), times)
    return places, np.arange(len(places)) - np.repeat(np.cumsum(times) - times, times)


# --- onto the disk ------------------------------------------------------------------------------------------------


def _write_index(folder: Path, kind: str, index: _Index, used: Any, max_length: int) -> None:
    import pyarrow as pa

    schema = index_schema(kind, max_length)
    values = {name: np.searchsorted(used, column) for name, column in index.records.items()} | index.columns
    with pa.ipc.new_file(str(folder / f"{kind}.arrow"), schema) as writer:
        for start in range(0, len(index), INDEX_ROWS):
            part = slice(start, start + INDEX_ROWS)
            columns = [pa.array(index.ids(part), pa.string())]
            columns += [pa.array(values[field.name][part]).cast(field.type) for field in list(schema)[1:]]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _write_records(folder: Path, shards: Shards, used: Any, kinds: Mapping[str, _Index]) -> None:
    """Each record once: its tokens to one file, its words to the other, with the ids of the rows made of it."""
    import pyarrow as pa

    schema = token_schema()
    rows = _RowsOf(kinds)
    with (
        pa.ipc.new_file(str(folder / TOKENS), schema) as tokens,
        (folder / RECORDS).open("w", encoding="utf-8") as texts,
    ):
        for start, files, batch in shards.batches():
            first, last = np.searchsorted(used, [start, start + batch.num_rows])
            if first < last:
                part = batch.take(pa.array(used[first:last] - start))
                tokens.write_batch(pa.record_batch([part.column(field.name) for field in schema], schema=schema))
                texts.writelines(_lines(part, files, rows.of(used[first:last])))


class _RowsOf:
    """The ids of the rows that records are part of."""

    def __init__(self, kinds: Mapping[str, _Index]) -> None:
        self._sorted = []
        for kind, index in kinds.items():
            for name, column in index.records.items():
                if name != "other":  # a mismatched response does not make it this record's row
                    order = np.argsort(column, kind="stable")
                    self._sorted.append((kind, index, order, column[order]))

    def of(self, records: Any) -> list[dict[str, list[str]]]:
        found: dict[int, dict[str, list[str]]] = {record: defaultdict(list) for record in records.tolist()}
        for kind, index, order, column in self._sorted:
            first, last = np.searchsorted(column, [records[0], records[-1] + 1])
            for record, row_id in zip(column[first:last].tolist(), index.ids(order[first:last]), strict=True):
                if row_id not in found[record][kind]:
                    found[record][kind].append(row_id)
        return list(found.values())


def _lines(part: Any, files: Any, rows: list[dict[str, list[str]]]) -> Iterator[str]:
    """JSON lines of records, put together from the JSON of their parts."""
    names = ("prompt_text", "first_text", "second_text", "line", "file", "kind", "sign", "margin", "weight")
    columns = {name: part.column(name).to_pylist() for name in names}
    for index, made in enumerate(rows):
        at = {name: column[index] for name, column in columns.items()}
        fields = {} if at["prompt_text"] == "[]" else {"prompt": at["prompt_text"]}
        fields |= dict(zip(COMPLETIONS[at["kind"]], (at["first_text"], at["second_text"]), strict=False))
        if at["kind"] == FEEDBACK:
            fields["desirable"] = json.dumps(at["sign"] > 0)
            fields |= {} if at["weight"] == 1 else {"weight": json.dumps(at["weight"])}
        if at["margin"] == at["margin"]:
            fields["margin"] = json.dumps(at["margin"])
        fields["origin"] = json.dumps(origin(files[at["file"]], at["line"]), ensure_ascii=False)
        fields["rows"] = json.dumps({kind: made[kind] for kind in KINDS if made.get(kind)})
        yield "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}\n"
