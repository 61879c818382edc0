"""Read which tensors a safetensors file holds, from its header alone."""

from __future__ import annotations

import json
from pathlib import Path

from alignment_core.errors import ModelError

LARGEST_HEADER = 2**27
"""safetensors itself allows no larger header."""
POINTER = b"version https://git-lfs"
"""How the file starts that git leaves in the place of a large one that was not downloaded."""


def tensor_shapes(file: Path, where: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by its name.

    Raises:
        ModelError: it is not a complete safetensors file.
    """
    with file.open("rb") as source:
        start = source.read(len(POINTER))
        size = int.from_bytes(start[:8], "little")
        source.seek(8)
        header = source.read(size) if size <= LARGEST_HEADER else b""
    if start == POINTER:
        raise ModelError(
            "the weights were not downloaded: git has left a pointer in place of the file",
            where=where,
            got=file,
            do=f"Run `git lfs pull` in {file.parent}",
        )
    try:
        found = json.loads(header)
        shapes = {name: tuple(item["shape"]) for name, item in found.items() if name != "__metadata__"}
        end = max((item["data_offsets"][1] for name, item in found.items() if name != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError("this is not a safetensors file", where=where, got=file) from error
    if file.stat().st_size < 8 + size + end:
        raise ModelError(
            "the file of weights is not complete",
            where=where,
            got=f"{file} with {file.stat().st_size} bytes",
            expected=f"at least {8 + size + end} bytes",
            do="Download it again",
        )
    return shapes
