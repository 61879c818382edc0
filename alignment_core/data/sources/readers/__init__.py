"""Read files as raw rows. Rows are streamed, so memory does not grow with the size of the file.

Every row carries its origin. A part that cannot be read becomes an `Unreadable` with its origin and a reason. If the
container allows it, the rows after that part are still read.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Iterator
from typing import IO, Any

from alignment_core.addresses import hide_secrets
from alignment_core.config import SourceConfig
from alignment_core.config.places import HUB
from alignment_core.data.sources.locate import first_line
from alignment_core.data.sources.readers.columnar import arrow_rows, parquet_rows
from alignment_core.data.sources.readers.json_rows import json_rows
from alignment_core.data.sources.readers.lines import text_rows
from alignment_core.data.sources.readers.separated import separated_rows
from alignment_core.data.sources.readers.unreadable import Unreadable
from alignment_core.data.sources.source_file import CONTAINERS, SourceFile
from alignment_core.errors import DataError
from alignment_core.records import RawRow

__all__ = ["RawRow", "Unreadable", "decompressed", "read_file", "read_hub"]


def read_file(file: SourceFile, source: SourceConfig) -> Iterator[RawRow | Unreadable]:
    """Yield the rows of one file. The extension selects the reader (`.jsonl` in `rows.jsonl.gz`)."""
    headerless = bool(source.columns) and all(name.isdecimal() for name in source.columns.values())
    try:
        with file.open() as raw, decompressed(raw, file) as stream:
            yield from _rows(file, stream, headerless)
    except Exception as error:  # each decompressor and columnar reader raises its own errors on damaged bytes
        yield Unreadable(file.name, "unreadable_file", hide_secrets(f"{type(error).__name__}: {error}"))


def read_hub(source: SourceConfig, commit: str) -> Iterator[RawRow | Unreadable]:
    """Stream the rows of a Hub data set at `commit`.

    Raises:
        DataError: the data set cannot be loaded.
    """
    import datasets

    name = source.path.removeprefix(HUB)
    try:
        rows = datasets.load_dataset(name, source.subset, revision=commit, split=source.split, streaming=True)
        for index, row in enumerate(rows, 1):
            yield RawRow(row, f"{name}:{index}")
    except Exception as error:  # scripts, Parquet, network: `datasets` has no common base class for its errors
        raise DataError(
            "the Hub data set cannot be read",
            where=source.path,
            got=first_line(error),
            do="Check data.sources[].subset and .split, or set .path to a downloaded copy",
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
            detail = f"the extension {container or '(none)'} is not supported, expected one of {', '.join(CONTAINERS)}"
            return iter([Unreadable(file.name, "unreadable_file", detail)])


def decompressed(raw: IO[bytes], file: SourceFile) -> IO[bytes]:
    """Return the content of a file that was opened with `file.open`."""
    if file.compression == ".zst":
        import pyarrow as pa

        # Arrow's reader raises an error if the file ends in the middle of a frame.
        stream: IO[bytes] = io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))
        return stream
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(file.compression)
    return raw if opener is None else opener(raw)
