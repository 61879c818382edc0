"""Check the counts in the head of a GGUF file against its size, before a library believes them.

The package `gguf` goes through an array of 2^40 items that a file of 100 bytes announces. The format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import IO

from alignment_core.texts import open_file

STRING, ARRAY = 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value of each type of fixed size."""
DEEPEST = 4
"""Levels of arrays in arrays. No model has more than one."""
LITTLE = 2**16
"""The version of a file is smaller, unless its bytes are in the other order."""


def check_counts(path: Path) -> None:
    """Check that a file is as long as the fields in its head say.

    Raises:
        ValueError: it is not.
        OSError: it cannot be read.
    """
    with open_file(path) as file:
        _Head(file).check()


class _Head:
    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._size = file, file.seek(0, os.SEEK_END)
        self._order = "<"
        file.seek(4)

    def check(self) -> None:
        if self._number("I") >= LITTLE:
            self._order = ">"
        self._number("Q")  # the tensors, whose heads follow the fields: the library reads them one by one
        for _ in range(self._number("Q")):
            self._skip(self._number("Q"))
            self._value(self._number("I"), 0)

    def _value(self, kind: int, depth: int) -> None:
        if kind == STRING:
            self._skip(self._number("Q"))
        elif kind == ARRAY and depth < DEEPEST:
            inner, count = self._number("I"), self._number("Q")
            if inner in SIZES:
                self._skip(SIZES[inner] * count)
                return
            for _ in range(count):  # each takes at least 8 bytes, so it ends with the file
                self._value(inner, depth + 1)
        else:
            self._skip(SIZES.get(kind, self._size + 1))

    def _number(self, kind: str) -> int:
        content = self._file.read(struct.calcsize(f"{self._order}{kind}"))
        try:
            return int(struct.unpack(f"{self._order}{kind}", content)[0])
        except struct.error:
            raise ValueError("the file ends inside a field") from None

    def _skip(self, count: int) -> None:
        if count > self._size - self._file.tell():
            raise ValueError(f"a field announces {count} bytes, which the file does not have")
        self._file.seek(count, os.SEEK_CUR)
