"""Read which tensors a safetensors file holds, from its header alone."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from alignment_core.errors import ModelError
from alignment_core.texts import open_file

LARGEST_HEADER = 2**25
"""Size in bytes of the largest header that is read: that of 300,000 tensors. In memory, it takes 25 times as much."""
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits of a value of each type. safetensors has others for parts of a byte, and may get more."""
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
    if LARGEST_HEADER < size < length:
        raise ModelError(
            "the file names more tensors than a model has",
            where=where,
            got=f"{file} with a header of {size} bytes",
            expected=f"at most {LARGEST_HEADER} bytes",
        )
    try:
        found = json.loads(header)
        tensors = {name: item for name, item in found.items() if name != "__metadata__"}
        shapes = {name: _whole(item["shape"]) for name, item in tensors.items()}
        end = _end([(item["dtype"], shapes[name], _whole(item["data_offsets"])) for name, item in tensors.items()])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ModelError("this is not a safetensors file", where=where, got=file) from error
    if length < 8 + size + end:
        raise ModelError(
            "the file of weights is not complete",
            where=where,
            got=f"{file} with {length} bytes",
            expected=f"at least {8 + size + end} bytes",
            do="Download it again",
        )
    return shapes


def _end(tensors: list[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> int:
    """Return where the last tensor ends.

    Args:
        tensors: type, shape and offsets of each.

    Raises:
        ValueError: one does not begin where another ends, or is not as long as its shape says.
    """
    end = 0
    for kind, shape, (begin, after) in sorted(tensors, key=lambda tensor: tensor[2]):
        bits = BITS.get(kind)
        if begin != end or after < begin or (bits is not None and 8 * (after - begin) != bits * math.prod(shape)):
            raise ValueError(f"{kind} {shape} at {begin} to {after}")
        end = after
    return end


def _whole(numbers: list[int]) -> tuple[int, ...]:
    """Return sizes or offsets.

    Raises:
        ValueError: one of them is none.
    """
    if not isinstance(numbers, list) or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise ValueError(numbers)
    return tuple(numbers)
