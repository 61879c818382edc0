"""Arrays backed by files, for data with one entry per record. Memory holds only one part at a time.

The files have no names, so nothing is left behind when the process exits or is killed. The operating system can evict
their pages at any time.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

PART = 2**16
"""Number of records that are processed together."""


def disk_array(folder: Path, shape: int | tuple[int, ...], dtype: Any) -> Any:
    """Create an array of zeros in an unnamed file on the file system of `folder`.

    Raises:
        OSError: the disk is full.
    """
    shape = shape if isinstance(shape, tuple) else (shape,)
    size = prod(shape) * np.dtype(dtype).itemsize
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            # Without room for a page of a file with holes, writing to it would end the process by SIGBUS.
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
        else:
            file.truncate(max(size, 1))
        pages = mmap.mmap(file.fileno(), max(size, 1))
    return np.frombuffer(pages, dtype=dtype, count=prod(shape)).reshape(shape)


class DiskColumns:
    """Columns on disk that can be appended to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, tuple[Any, Any]] = {}

    def append(self, **columns: Any) -> None:
        """Append to each column. The first values decide its type."""
        for name, values in columns.items():
            if name not in self._files:
                file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed by `arrays`
                self._files[name] = (file, values.dtype)
            file, dtype = self._files[name]
            file.write(np.ascontiguousarray(values, dtype=dtype).data)

    def arrays(self) -> dict[str, Any]:
        """Return the columns by name. Nothing can be appended afterwards."""
        found = {}
        for name, (file, dtype) in self._files.items():
            size = file.tell()
            file.flush()
            found[name] = np.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype) if size else np.zeros(0, dtype)
            file.close()
        return found


def collect_columns(folder: Path, empty: Mapping[str, Any], parts: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
    """Concatenate `parts` into columns on disk. `empty` gives the names and types of the columns."""
    spool = DiskColumns(folder)
    spool.append(**{name: np.zeros(0, dtype) for name, dtype in empty.items()})
    for part in parts:
        spool.append(**part)
    return spool.arrays()


def slices(count: int) -> Iterator[slice]:
    """Yield consecutive slices of length `PART` that cover `count` entries."""
    for start in range(0, count, PART):
        yield slice(start, min(start + PART, count))


def index_batches(mask: Any) -> Iterator[Any]:
    """Yield the indices at which `mask` is true, ascending, as arrays that are never empty."""
    for part in slices(len(mask)):
        if len(found := np.flatnonzero(mask[part])):
            yield part.start + found


def hash_groups(hashes: Any, mask: Any) -> Iterator[Any]:
    """Yield the indices at which `mask` is true, in groups of about `PART` in which equal hashes are together.

    The groups are ordered by hash. The indices of each group are ascending. No group is empty.
    """
    bits = (int(np.count_nonzero(mask)) // PART).bit_length()
    if not bits:
        found = np.flatnonzero(mask)
        if len(found):
            yield found
        return
    shift = np.uint64(64 - bits)
    for group in range(2**bits):
        found = np.concatenate(
            [
                part.start + np.flatnonzero((hashes[part] >> shift == np.uint64(group)) & mask[part])
                for part in slices(len(mask))
            ]
        )
        if len(found):
            yield found
