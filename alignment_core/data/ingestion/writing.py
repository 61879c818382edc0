"""Write one split of a data set: records as JSON lines for people, tokens and rows as Arrow files for the stages."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignment_core.data.dataset.arrow_columns import arrow_array
from alignment_core.data.dataset.disk_arrays import DiskColumns, collect_columns, disk_array, slices
from alignment_core.data.dataset.kinds import DEMONSTRATION, FEEDBACK, KINDS, PREFERENCE, PROMPT
from alignment_core.data.dataset.stored_rows import TOKENS, index_schema, token_schema
from alignment_core.data.ingestion.conversion import Chosen
from alignment_core.data.ingestion.mismatch import mismatched_rows
from alignment_core.data.ingestion.record_parts import combine_hashes
from alignment_core.data.ingestion.selection.select import repeat_counts
from alignment_core.data.ingestion.shards import Shards, origin

RECORDS = "records.jsonl"
COMPLETIONS = {DEMONSTRATION: ("answer",), PREFERENCE: ("chosen", "rejected"), FEEDBACK: ("response",), PROMPT: ()}
"""Keys of a record's completions in `records.jsonl`, by kind."""


@dataclass(frozen=True)
class Written:
    """The result of `write_split`.

    Attributes:
        rows: number of rows by kind.
        unmatched: number of labelled rows without a mismatched response, because no row has another prompt.
        records: whether each record is part of a row, shape (records,), backed by a file.
    """

    rows: dict[str, int]
    unmatched: int
    records: Any


@dataclass(frozen=True)
class _Index:
    """The rows of one kind, backed by files: `name`, `copy`, the records, and the other columns of the kind's file."""

    columns: dict[str, Any]
    records: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.columns["name"])

    def ids(self, places: Any) -> list[str]:
        """Return the ids of some rows. Copies of a row are numbered."""
        names, copies = (self.columns[column][places].tolist() for column in ("name", "copy"))
        return [f"{name:016x}-{copy + 1}" if copy else f"{name:016x}" for name, copy in zip(names, copies, strict=True)]


def write_split(folder: Path, shards: Shards, chosen: Chosen, max_length: int, weights: Any = None) -> Written:
    """Write a split to a folder.

    Args:
        folder: created if it does not exist.
        shards: the records.
        chosen: the rows to write.
        max_length: maximum length of a sequence in tokens.
        weights: weight of each shard. A weight above 1 repeats its rows. None: each row is written once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    split = _Split(folder, shards.numbers, weights)
    feedback, unmatched = split.feedback(chosen.feedback, max_length)
    kinds = {
        "demonstrations": split.plain(chosen.demonstrations, DEMONSTRATION, "first"),
        "preferences": split.preferences(*chosen.preferences),
        "feedback": feedback,
        "prompts": split.plain(chosen.prompts, PROMPT),
    }
    used, places = disk_array(folder, len(shards), bool), disk_array(folder, len(shards), np.uint32)
    for index in kinds.values():
        for part in slices(len(index)):
            for name in index.records:
                used[index.columns[name][part]] = True
    before = 0
    for part in slices(len(used)):
        places[part] = before + np.cumsum(used[part]) - 1
        before += int(np.count_nonzero(used[part]))
    for kind, index in kinds.items():
        _write_index(folder, kind, index, places, max_length)
    _write_records(folder, shards, used, kinds)
    return Written({kind: len(index) for kind, index in kinds.items()}, unmatched, used)


# --- choosing rows ------------------------------------------------------------------------------------------------


class _Split:
    """Builds the rows of a split. A row's name is a hash of its kind, prompt and completions."""

    def __init__(self, folder: Path, numbers: Any, weights: Any) -> None:
        self._folder = folder
        self._numbers = numbers
        self._weights = weights

    def plain(self, records: Any, kind: int, *completions: str) -> _Index:
        """Build rows that consist of one record each."""

        def rows() -> Iterator[dict[str, Any]]:
            for places, copies in self._repeated(records):
                record = records[places]
                hashes = [self._numbers[f"{name}_hash"][record] for name in ("prompt", *completions)]
                yield {"name": combine_hashes(np.full(len(record), kind), *hashes), "copy": copies, "record": record}

        return self._index(rows(), ("record",))

    def preferences(self, better: Any, worse: Any) -> _Index:
        """Build the preference pairs."""
        numbers = self._numbers

        def rows() -> Iterator[dict[str, Any]]:
            for places, copies in self._repeated(better):
                good, bad = better[places], worse[places]
                given = good == bad
                rejected = np.where(given, numbers["second_hash"][bad], numbers["first_hash"][bad])
                hashes = numbers["prompt_hash"][good], numbers["first_hash"][good], rejected
                yield {
                    "name": combine_hashes(np.full(len(good), PREFERENCE), *hashes),
                    "copy": copies,
                    "chosen": good,
                    "rejected": bad,
                    "margin": np.nan_to_num(np.where(given, numbers["margin"][good], np.nan)),
                }

        return self._index(rows(), ("chosen", "rejected"), margin=np.float64)

    def feedback(self, labels: tuple[Any, Any, Any], max_length: int) -> tuple[_Index, int]:
        """Build the labelled rows with their mismatched responses. Also return the number of rows without one."""
        numbers = self._numbers

        def rows() -> Iterator[dict[str, Any]]:
            for places, copies in self._repeated(labels[0]):
                record, side, sign = (values[places] for values in labels)
                second = side == 1
                response, tokens = (
                    np.where(second, numbers[f"second_{what}"][record], numbers[f"first_{what}"][record])
                    for what in ("hash", "tokens")
                )
                prompt = numbers["prompt_hash"][record]
                name = combine_hashes(np.full(len(record), FEEDBACK), prompt, response)
                yield {
                    "name": name,
                    "copy": copies,
                    "record": record,
                    "side": side,
                    "desirable": (sign > 0).astype(np.float64),
                    "weight": numbers["weight"][record],
                    "hash": combine_hashes(name, copies),
                    "asked": np.where(prompt != 0, prompt, response),
                    "head_tokens": numbers["head_tokens"][record],
                    "tokens": tokens,
                }

        types = {"side": np.int64, "desirable": np.float64, "weight": np.float64}
        types |= {"hash": np.uint64, "asked": np.uint64, "head_tokens": np.int64, "tokens": np.int64}
        index = self._index(rows(), ("record",), **types)
        columns = index.columns
        hashes, asked, head, tokens = (columns.pop(name) for name in ("hash", "asked", "head_tokens", "tokens"))
        others = mismatched_rows(hashes, asked, head, tokens, max_length, self._folder)
        unmatched = 0
        spool = DiskColumns(self._folder)
        spool.append(other=np.zeros(0, np.int64), other_side=np.zeros(0, np.int64))
        for part in slices(len(others)):
            unmatched += int(np.count_nonzero(others[part] < 0))
            source = np.where(others[part] < 0, np.arange(part.start, part.stop), others[part])
            spool.append(other=columns["record"][source], other_side=columns["side"][source])
        return _Index(columns | spool.arrays(), ("record", "other")), unmatched

    def _repeated(self, records: Any) -> Iterator[tuple[Any, Any]]:
        """Yield indices into `records`, each as often as it is written, and the number of each copy, in parts."""
        for part in slices(len(records)):
            places = np.arange(part.start, part.stop)
            if self._weights is None:
                yield places, np.zeros(len(places), dtype=np.int64)
                continue
            times = repeat_counts(self._numbers, records[part], self._weights)
            yield np.repeat(places, times), np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)

    def _index(self, rows: Iterator[dict[str, Any]], records: tuple[str, ...], **types: Any) -> _Index:
        types = {"name": np.uint64, "copy": np.int64, **dict.fromkeys(records, np.int64), **types}
        return _Index(collect_columns(self._folder, types, rows), records)


# --- writing files ------------------------------------------------------------------------------------------------


def _write_index(folder: Path, kind: str, index: _Index, places: Any, max_length: int) -> None:
    import pyarrow as pa

    schema = index_schema(kind, max_length)
    with pa.ipc.new_file(str(folder / f"{kind}.arrow"), schema) as writer:
        for part in slices(len(index)):
            columns = [arrow_array(index.ids(part), pa.string())]
            for field in list(schema)[1:]:
                values = index.columns[field.name][part]
                columns.append(arrow_array(places[values] if field.name in index.records else values, field.type))
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _write_records(folder: Path, shards: Shards, used: Any, kinds: Mapping[str, _Index]) -> None:
    """Write each record once: its tokens to one file, its text and the ids of the rows that use it to the other."""
    import pyarrow as pa

    schema = token_schema()
    rows = _RowsOf(folder, kinds)
    with (
        pa.ipc.new_file(str(folder / TOKENS), schema) as tokens,
        (folder / RECORDS).open("w", encoding="utf-8") as texts,
    ):
        for start, files, batch in shards.batches():
            records = np.flatnonzero(used[start : start + batch.num_rows])
            if len(records):
                part = batch.take(arrow_array(records, pa.int64()))
                tokens.write_batch(pa.record_batch([part.column(field.name) for field in schema], schema=schema))
                texts.writelines(_lines(part, files, rows.of(start + records)))


class _RowsOf:
    """Finds the ids of the rows that use a record."""

    def __init__(self, folder: Path, kinds: Mapping[str, _Index]) -> None:
        self._links = []
        for kind, index in kinds.items():
            for name in index.records:
                # A mismatched response does not make a row one of the record's rows.
                if name != "other":
                    # The record is in the upper 32 bits, the row in the lower 32.
                    links = disk_array(folder, len(index), np.uint64)
                    for part in slices(len(index)):
                        rows = np.arange(part.start, part.stop, dtype=np.uint64)
                        links[part] = index.columns[name][part].astype(np.uint64) << np.uint64(32) | rows
                    links.sort()
                    self._links.append((kind, index, links))

    def of(self, records: Any) -> list[dict[str, list[str]]]:
        found: dict[int, dict[str, list[str]]] = {record: defaultdict(list) for record in records.tolist()}
        bounds = np.array([records[0], records[-1] + 1], dtype=np.uint64) << np.uint64(32)
        for kind, index, links in self._links:
            first, last = np.searchsorted(links, bounds)
            own, rows = links[first:last] >> np.uint64(32), (links[first:last] & np.uint64(2**32 - 1)).astype(np.int64)
            for record, row_id in zip(own.tolist(), index.ids(rows), strict=True):
                if row_id not in found[record][kind]:
                    found[record][kind].append(row_id)
        return list(found.values())


def _lines(part: Any, files: Any, rows: list[dict[str, list[str]]]) -> Iterator[str]:
    """Yield the records as JSON lines, assembled from the stored JSON of their parts."""
    names = ("prompt_text", "first_text", "second_text", "line", "file", "kind", "sign", "margin", "weight", "facts")
    columns = {name: part.column(name).to_pylist() for name in names}
    for index, row_ids in enumerate(rows):
        at = {name: column[index] for name, column in columns.items()}
        fields = {} if at["prompt_text"] == "[]" else {"prompt": at["prompt_text"]}
        fields |= dict(zip(COMPLETIONS[at["kind"]], (at["first_text"], at["second_text"]), strict=False))
        if at["kind"] == FEEDBACK:
            fields["desirable"] = json.dumps(at["sign"] > 0)
            fields |= {} if at["weight"] == 1 else {"weight": json.dumps(at["weight"])}
        if at["margin"] == at["margin"]:
            fields["margin"] = json.dumps(at["margin"])
        if at["facts"] is not None:
            fields["facts"] = at["facts"]
        fields["origin"] = json.dumps(origin(files[at["file"]], at["line"]), ensure_ascii=False)
        fields["rows"] = json.dumps({kind: row_ids[kind] for kind in KINDS if row_ids.get(kind)})
        yield "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}\n"
