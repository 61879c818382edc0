"""Read which tensors a safetensors file holds, from its header alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

from alignment_core.errors import ModelError
from alignment_core.texts import open_file

LARGEST_HEADER = 2**27
"""safetensors itself allows no larger header."""
POINTER = b"version https://git-lfs"
"""How the file starts that git leaves in the place of a large one that was not downloaded."""


def tensor_shapes(file: Path, where: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by its name.

    Raises:
        ModelError: it is not a complete safetensors file.
    """
    try:
        with open_file(file) as source:
            start = source.read(len(POINTER))
            size = int.from_bytes(start[:8], "little")
            source.seek(8)
            header = source.read(size) if size <= LARGEST_HEADER else b""
            length = source.seek(0, os.SEEK_END)
    except OSError as error:
        got = f"{file}: {error.strerror}"
        raise ModelError("the file of weights cannot be read", where=where, got=got) from error
    if start == POINTER:
        raise ModelError(
            "the weights were not downloaded: git has left a pointer in place of the file",
            where=where,
            got=file,
            do=f"Run `git lfs pull` in {file.parent}",
        )
    try:
        found = json.loads(header)
        shapes = {name: _whole(item["shape"]) for name, item in found.items() if name != "__metadata__"}
        ends = [_whole(item["data_offsets"])[1] for name, item in found.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ModelError("this is not a safetensors file", where=where, got=file) from error
    end = max(ends, default=0)
    if length < 8 + size + end:
        raise ModelError(
            "the file of weights is not complete",
            where=where,
            got=f"{file} with {length} bytes",
            expected=f"at least {8 + size + end} bytes",
            do="Download it again",
        )
    return shapes


def _whole(numbers: list[int]) -> tuple[int, ...]:
    """Return sizes or offsets.

    Raises:
        ValueError: one of them is none.
    """
    if not isinstance(numbers, list) or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise ValueError(numbers)
    return tuple(numbers)
