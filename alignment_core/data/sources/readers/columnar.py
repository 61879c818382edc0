"""Read Parquet and Arrow files in batches of rows.

Both can hold much in little: a file of 20 KB may have a cell of gigabytes, or one value a million times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import IO, Any

from alignment_core.data.sources.readers.lines import MAX_LINE
from alignment_core.data.sources.readers.unreadable import Unreadable
from alignment_core.data.sources.source_file import SourceFile
from alignment_core.processes.memory_limit import memory_limit
from alignment_core.records import RawRow

BATCH_ROWS = 256
LARGEST_BATCH = 2**31
"""Bytes that a batch, or rows made of it, may take."""


def parquet_rows(file: SourceFile, stream: IO[bytes]) -> Iterator[RawRow | Unreadable]:
    """Stream the rows of a Parquet file by row group.

    Raises:
        MemoryError: a batch is larger than `LARGEST_BATCH`.
    """
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(stream) as parquet:
        yield from _rows(file.name, parquet.iter_batches(BATCH_ROWS))


def arrow_rows(file: SourceFile, stream: IO[bytes]) -> Iterator[RawRow | Unreadable]:
    """Yield the rows of an Arrow IPC file or stream (the format that `datasets` writes).

    Raises:
        MemoryError: a batch is larger than `LARGEST_BATCH`.
    """
    import pyarrow as pa

    if stream.read(6) == b"ARROW1":
        stream.seek(0)
        reader = pa.ipc.open_file(stream)
        yield from _rows(file.name, (reader.get_batch(index) for index in range(reader.num_record_batches)))
    else:
        stream.seek(0)
        yield from _rows(file.name, pa.ipc.open_stream(stream))


def _rows(name: str, batches: Any) -> Iterator[RawRow | Unreadable]:
    index = 0
    while (batch := _next(batches)) is not None:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            piece = batch.slice(start, BATCH_ROWS)
            with memory_limit(LARGEST_BATCH):
                rows = piece.to_pylist()
            perhaps_long = piece.nbytes > MAX_LINE
            for row in rows:
                index += 1
                if perhaps_long and _size(row) > MAX_LINE:
                    yield Unreadable(f"{name}:{index}", "line_too_long", f"the row has more than {MAX_LINE} bytes")
                else:
                    yield RawRow(row, f"{name}:{index}")


def _next(batches: Any) -> Any:
    with memory_limit(LARGEST_BATCH):
        return next(batches, None)


def _size(value: Any) -> int:
    """Return the characters and bytes in a value."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 0
