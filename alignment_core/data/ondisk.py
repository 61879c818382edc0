"""Arrays that lie in files: of what there is one per record, memory holds a part at a time.

The files have no names, so nothing is left of them when a process dies. Their pages are the system's to take back.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

PART = 2**16
"""Records that are worked on together."""


def on_disk(folder: Path, shape: int | tuple[int, ...], dtype: Any) -> Any:
    """An array of zeros in a file of `folder`'s file system."""
    shape = shape if isinstance(shape, tuple) else (shape,)
    size = prod(shape) * np.dtype(dtype).itemsize
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(max(size, 1))
        pages = mmap.mmap(file.fileno(), max(size, 1))
    return np.frombuffer(pages, dtype=dtype, count=prod(shape)).reshape(shape)


class Spool:
    """Columns that grow on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, tuple[Any, Any]] = {}

    def append(self, **columns: Any) -> None:
        """Append to each column; the first values decide its type."""
        for name, values in columns.items():
            if name not in self._files:
                file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed when its pages are mapped
                self._files[name] = (file, values.dtype)
            file, dtype = self._files[name]
            file.write(np.ascontiguousarray(values, dtype=dtype).data)

    def arrays(self) -> dict[str, Any]:
        """The columns by name; nothing may be appended any more."""
        found = {}
        for name, (file, dtype) in self._files.items():
            size = file.tell()
            file.flush()
            found[name] = np.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype) if size else np.zeros(0, dtype)
            file.close()
        return found


def spooled(folder: Path, empty: Mapping[str, Any], parts: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
    """The columns that `parts` make together; `empty` names them and their types."""
    spool = Spool(folder)
    spool.append(**{name: np.zeros(0, dtype) for name, dtype in empty.items()})
    for part in parts:
        spool.append(**part)
    return spool.arrays()


def in_parts(count: int) -> Iterator[slice]:
    """Consecutive slices of `PART` that cover `count`."""
    for start in range(0, count, PART):
        yield slice(start, min(start + PART, count))


def places(mask: Any) -> Iterator[Any]:
    """Indices at which `mask` is true, ascending, an array at a time, none of them empty."""
    for part in in_parts(len(mask)):
        if len(found := np.flatnonzero(mask[part])):
            yield part.start + found


def by_hash(hashes: Any, mask: Any) -> Iterator[Any]:
    """Indices at which `mask` is true in groups of about `PART`, each ascending, so that equal hashes share a group.

    The groups follow one another as their hashes do; none is empty.
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
                for part in in_parts(len(mask))
            ]
        )
        if len(found):
            yield found
