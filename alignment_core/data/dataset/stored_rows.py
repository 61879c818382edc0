"""Rows on disk, read through memory maps, so that RAM does not limit the size of a data set.

The tokens of a record are stored once, in `tokens.arrow`. The file of each kind refers to the records that its rows
use. A pair, its two labelled responses, its demonstration and its prompt thus share their tokens.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np

from alignment_core.plugin_api import Row, TokenSequence

TOKENS = "tokens.arrow"
MAX_LENGTH = b"max_length"
SIDES = ("first", "second")


def token_schema() -> Any:
    """Return the Arrow schema of `tokens.arrow`, which has one row per record.

    `head` is the completions' prompt. `first` and `second` are the completions. `demonstration.start` and
    `demonstration.mask` mark the targets of a demonstration in `head` and `first`. `prompt` is the prompt alone, or
    null if it equals `head`. `messages` is the JSON of the turns in `prompt`, and `facts` that of the kept columns, or
    null if there are none.
    """
    import pyarrow as pa

    ids, mask = pa.list_(pa.int32()), pa.list_(pa.bool_())
    return pa.schema(
        [
            *[pa.field(name, ids) for name in ("head", "first", "second", "prompt")],
            *[pa.field(f"{name}.mask", mask) for name in ("first", "second", "demonstration")],
            pa.field("demonstration.start", pa.int32()),
            pa.field("messages", pa.string()),
            pa.field("facts", pa.string()),
        ]
    )


def index_schema(kind: str, max_length: int = 0) -> Any:
    """Return the Arrow schema of a kind's file: each row's id, its records in `tokens.arrow`, and its numbers."""
    import pyarrow as pa

    record, side, number = pa.uint32(), pa.int8(), pa.float64()
    fields = {
        "demonstrations": {"record": record},
        "preferences": {"chosen": record, "rejected": record, "margin": number},
        "feedback": {
            "record": record, "side": side, "desirable": number, "weight": number, "other": record, "other_side": side,
        },
        "prompts": {"record": record},
    }[kind]  # fmt: skip
    schema = pa.schema([pa.field("id", pa.string()), *(pa.field(name, type_) for name, type_ in fields.items())])
    return schema.with_metadata({MAX_LENGTH: str(max_length).encode()})


class Tokens:
    """The tokens of the records in a folder."""

    def __init__(self, path: Path) -> None:
        self._batches = [_Batch(batch) for batch in _batches(path)]
        self._ends = list(accumulate(len(batch) for batch in self._batches))

    def ids(self, record: int, name: str) -> tuple[int, ...] | None:
        """Return the ids of one part of a record, or None if the record does not have the part."""
        batch, row = self._at(record)
        return batch.ids(name, row)

    def value(self, record: int, name: str) -> Any:
        """Return a record's value in one column."""
        batch, row = self._at(record)
        return batch.value(name, row)

    def contents(self, name: str) -> Iterator[tuple[int, bytes]]:
        """Yield the index of each record that has this part, and the part's ids as int32 in native byte order."""
        start = 0
        for batch in self._batches:
            yield from ((start + row, content) for row, content in batch.contents(name))
            start += len(batch)

    def sequence(self, head: tuple[int, ...], record: int, name: str) -> TokenSequence:
        """Return the completion `first` or `second` of a record, with `head` as its prompt."""
        mask = self.value(record, f"{name}.mask")
        completion = self.ids(record, name) or ()
        return TokenSequence(head + completion, len(head), None if mask is None else tuple(mask))

    def _at(self, record: int) -> tuple[_Batch, int]:
        batch = bisect_right(self._ends, record)
        return self._batches[batch], record - (self._ends[batch - 1] if batch else 0)


class _Batch:
    """One record batch. Its columns are opened as numpy views on first use."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        self._views: dict[str, tuple[Any, Any, Any]] = {}

    def __len__(self) -> int:
        return int(self._batch.num_rows)

    def ids(self, name: str, row: int) -> tuple[int, ...] | None:
        if name not in self._views:
            column = self._batch.column(name)
            self._views[name] = column.offsets.to_numpy(), column.values.to_numpy(), column.is_valid()
        offsets, values, valid = self._views[name]
        return tuple(values[offsets[row] : offsets[row + 1]].tolist()) if valid[row].as_py() else None

    def contents(self, name: str) -> Iterator[tuple[int, bytes]]:
        column = self._batch.column(name)
        offsets, values = column.offsets.to_numpy(), column.values.to_numpy()
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(valid).tolist():
            yield row, values[offsets[row] : offsets[row + 1]].tobytes()

    def value(self, name: str, row: int) -> Any:
        column = self._batch.column(name)
        return None if column.null_count == len(column) else column[row].as_py()


class _Part:
    """The rows of one kind in one folder."""

    def __init__(self, folder: Path, kind: str) -> None:
        import pyarrow as pa

        self._kind = kind
        self._folder = folder
        self._table = pa.Table.from_batches(_batches(folder / f"{kind}.arrow"), index_schema(kind))
        self._columns = {name: self._table.column(name).to_numpy() for name in self._table.column_names[1:]}
        self._max_length = int(_metadata(folder / f"{kind}.arrow").get(MAX_LENGTH, b"0"))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @cached_property
    def _tokens(self) -> Tokens:
        return Tokens(self._folder / TOKENS)

    def row(self, index: int) -> Row:
        at = {name: column[index].item() for name, column in self._columns.items()}
        sequences, values = getattr(self, f"_{self._kind}")(at)
        facts = self._tokens.value(self._record(index), "facts")
        return Row(
            self._table.column("id")[index].as_py(), sequences, values, {} if facts is None else json.loads(facts)
        )

    def messages(self, index: int) -> str:
        return str(self._tokens.value(self._record(index), "messages"))

    def _record(self, index: int) -> int:
        """Return the record with the prompt of a row. For a pair: the record of the chosen response."""
        return int(self._columns["chosen" if self._kind == "preferences" else "record"][index])

    def ids(self) -> list[str]:
        return self._table.column("id").to_pylist()  # type: ignore[no-any-return]

    def _demonstrations(self, at: dict[str, Any]) -> tuple[dict[str, TokenSequence], dict[str, float]]:
        tokens, record = self._tokens, at["record"]
        ids = (tokens.ids(record, "head") or ()) + (tokens.ids(record, "first") or ())
        mask = tokens.value(record, "demonstration.mask")
        start = tokens.value(record, "demonstration.start")
        return {"demonstration": TokenSequence(ids, start, None if mask is None else tuple(mask))}, {}

    def _preferences(self, at: dict[str, Any]) -> tuple[dict[str, TokenSequence], dict[str, float]]:
        tokens, chosen, rejected = self._tokens, at["chosen"], at["rejected"]
        # The prompts of two records may be cut differently. The shorter one leaves room for both answers.
        head = min((tokens.ids(record, "head") or () for record in (chosen, rejected)), key=len)
        second = "second" if chosen == rejected else "first"
        sides = {"chosen": tokens.sequence(head, chosen, "first"), "rejected": tokens.sequence(head, rejected, second)}
        return sides, {"margin": at["margin"]}

    def _feedback(self, at: dict[str, Any]) -> tuple[dict[str, TokenSequence], dict[str, float]]:
        tokens = self._tokens
        head = tokens.ids(at["record"], "head") or ()
        response = tokens.sequence(head, at["record"], SIDES[at["side"]])
        other = tokens.sequence((), at["other"], SIDES[at["other_side"]])
        room = max(self._max_length - len(other.ids), 0)
        cut = head[max(len(head) - room, 0) :]
        mismatched = TokenSequence(cut + other.ids, len(cut), other.mask)
        values = {"desirable": at["desirable"], "weight": at["weight"]}
        return {"response": response, "mismatched": mismatched}, values

    def _prompts(self, at: dict[str, Any]) -> tuple[dict[str, TokenSequence], dict[str, float]]:
        record = at["record"]
        ids = self._tokens.ids(record, "prompt")
        ids = (self._tokens.ids(record, "head") or ()) if ids is None else ids
        return {"prompt": TokenSequence(ids, len(ids))}, {}


class StoredRows(Sequence[Row]):
    """Rows of one kind from one or more folders, in order. Each row is built when it is accessed."""

    def __init__(self, folders: Sequence[Path], kind: str) -> None:
        self._parts = [_Part(folder, kind) for folder in folders if (folder / f"{kind}.arrow").exists()]
        self._ends = list(accumulate(len(part) for part in self._parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        part, row = self._locate(index)
        return part.row(row)

    def __iter__(self) -> Iterator[Row]:
        for part in self._parts:
            yield from map(part.row, range(len(part)))

    def conversation(self, index: int) -> str:
        """Return the JSON of the turns before the row's completions. For a pair: the turns before the chosen one."""
        part, row = self._locate(index)
        return part.messages(row)

    def messages(self, row_id: str) -> str:
        """Return the JSON of the conversation of the prompt with this id.

        Raises:
            KeyError: no prompt has this id.
        """
        ids, order = self._by_id
        place = int(np.searchsorted(ids, row_id.encode()))
        if place >= len(ids) or ids[place] != row_id.encode():
            raise KeyError(row_id)
        part, row = self._locate(int(order[place]))
        return part.messages(row)

    @cached_property
    def _by_id(self) -> tuple[Any, Any]:
        ids = np.array([row_id for part in self._parts for row_id in part.ids()], dtype="S32")
        order = np.argsort(ids, kind="stable")
        return ids[order], order

    def _locate(self, index: int) -> tuple[_Part, int]:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} is out of range for {len(self)} rows")
        part = bisect_right(self._ends, index)
        return self._parts[part], index - (self._ends[part - 1] if part else 0)


def _batches(path: Path) -> list[Any]:
    import pyarrow as pa

    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return [reader.get_batch(index) for index in range(reader.num_record_batches)]


def _metadata(path: Path) -> dict[bytes, bytes]:
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(str(path))).schema.metadata or {}
