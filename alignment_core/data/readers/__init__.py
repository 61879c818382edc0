"""From a file's bytes to raw rows, streaming: memory does not grow with the file.

Every row carries its place. What cannot be read becomes an `Unreadable` with its place and a named reason, and the
rows after it are still read where the container allows that.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Iterator
from typing import IO, Any

from alignment_core.config import SourceConfig
from alignment_core.data.locate import CONTAINERS, HUB, SourceFile, brief
from alignment_core.data.readers.columnar import arrow_rows, parquet_rows
from alignment_core.data.readers.json_rows import json_rows
from alignment_core.data.readers.lines import text_rows
from alignment_core.data.readers.rows import Unreadable
from alignment_core.data.readers.separated import separated_rows
from alignment_core.errors import DataError
from alignment_core.records import RawRow

__all__ = ["RawRow", "Unreadable", "read_file", "read_hub"]


def read_file(file: SourceFile, source: SourceConfig) -> Iterator[RawRow | Unreadable]:
    """The rows of one file, by its extension (a compressed one by the extension before that)."""
    headerless = bool(source.columns) and all(name.isdecimal() for name in source.columns.values())
    try:
        with file.open() as raw, _decompressed(raw, file) as stream:
            yield from _rows(file, stream, headerless)
    except Exception as error:  # on damaged bytes each decompressor and each columnar reader raises its own
        yield Unreadable(file.name, "unreadable_file", f"{type(error).__name__}: {error}")


def read_hub(source: SourceConfig, commit: str) -> Iterator[RawRow | Unreadable]:
    """The rows of a hub data set at `commit`, streamed.

    Raises:
        DataError: it does not load.
    """
    import datasets

    name = source.path.removeprefix(HUB)
    try:
        rows = datasets.load_dataset(name, source.subset, revision=commit, split=source.split, streaming=True)
        for index, row in enumerate(rows, 1):
            yield RawRow(row, f"{name}:{index}")
    except Exception as error:  # loading scripts, parquet, network: `datasets` has no common base for its errors
        raise DataError(
            "the hub data set cannot be read",
            where=source.path,
            got=brief(error),
            do="Check data.sources[].subset and .split, or download it and name the folder",
        ) from error


def _rows(file: SourceFile, stream: IO[bytes], headerless: bool) -> Iterator[RawRow | Unreadable]:
    match file.container:
        case ".jsonl" | ".ndjson":
            return json_rows(file.name, stream, lines_only=True)
        case ".json":
            return json_rows(file.name, stream, lines_only=False)
        case ".parquet":
            return parquet_rows(file, stream)
        case ".arrow" | ".feather":
            return arrow_rows(file, stream)
        case ".csv":
            return separated_rows(file.name, stream, ",", headerless)
        case ".tsv":
            return separated_rows(file.name, stream, "\t", headerless)
        case ".txt":
            return text_rows(file.name, stream)
        case container:
            raise ValueError(
                f"no reader for {container or 'a file without extension'}, only for {', '.join(CONTAINERS)}"
            )


def _decompressed(raw: IO[bytes], file: SourceFile) -> IO[bytes]:
    if file.compression == ".zst":
        import pyarrow as pa

        # Arrow's reader says when a file ends in the middle of a frame.
        stream: IO[bytes] = io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))
        return stream
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(file.compression)
    return raw if opener is None else opener(raw)
