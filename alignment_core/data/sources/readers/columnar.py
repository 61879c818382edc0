"""Read Parquet and Arrow files in batches of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from alignment_core.data.sources.source_file import SourceFile
from alignment_core.records import RawRow

BATCH_ROWS = 256


def parquet_rows(file: SourceFile, stream: IO[bytes]) -> Iterator[RawRow]:
    """Stream the rows of a Parquet file by row group."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(stream) as parquet:
        yield from _rows(file.name, parquet.iter_batches(BATCH_ROWS))


def arrow_rows(file: SourceFile, stream: IO[bytes]) -> Iterator[RawRow]:
    """Yield the rows of an Arrow IPC file or stream (the format that `datasets` writes)."""
    import pyarrow as pa

    if stream.read(6) == b"ARROW1":
        stream.seek(0)
        reader = pa.ipc.open_file(stream)
        yield from _rows(file.name, (reader.get_batch(index) for index in range(reader.num_record_batches)))
    else:
        stream.seek(0)
        yield from _rows(file.name, pa.ipc.open_stream(stream))


def _rows(name: str, batches: Any) -> Iterator[RawRow]:
    index = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            for row in batch.slice(start, BATCH_ROWS).to_pylist():
                index += 1
                yield RawRow(row, f"{name}:{index}")
