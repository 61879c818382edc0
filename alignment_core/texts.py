"""Compare texts, write numbers in them, and read those of strangers."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import IO, Any

from alignment_core.errors import ModelError

LARGEST_TEXT = 50_000_000
"""Size in bytes of the largest file that is read as a text. A vocabulary of a million tokens takes half of it."""


def common_start(first: str, second: str) -> int:
    """Return the length of the start that two texts share."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


def percent(share: float, digits: int = 0, *, sign: str = "") -> str:
    """Return a share as every page and message shows it, such as `96 %`, with `sign="+"` a change, such as `+4 %`."""
    return f"{100 * share:{sign}.{digits}f} %"


def open_file(path: Path, *, links: bool = True) -> IO[bytes]:
    """Open a file of a stranger for reading. A pipe is not waited for, and a folder or a device is not opened.

    Args:
        path: the file.
        links: whether the file may be a link.

    Raises:
        OSError: it is no file, or cannot be opened.
    """
    careful = os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | careful))  # noqa: SIM115 - callers close it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a file", str(path))
    return file


def read_bytes(path: Path, most: int, *, links: bool = True) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: as for `open_file`, or it has more than `most` bytes.
    """
    with open_file(path, links=links) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most} bytes", str(path))
    return content


def read_text(path: Path, most: int = LARGEST_TEXT) -> str:
    """Return the content of a text file (UTF-8).

    Raises:
        OSError: it is no file, has more than `most` bytes, or cannot be read.
        UnicodeDecodeError: it is no text.
    """
    return read_bytes(path, most).decode()


def read_text_of_model(path: Path) -> str:
    """Return the content of a text file that belongs to a model.

    Raises:
        ModelError: it is no text, or cannot be read.
    """
    try:
        return read_text(path)
    except UnicodeDecodeError as error:
        raise ModelError("this file of the model is no text", where=str(path), got=error.reason) from error
    except OSError as error:
        raise ModelError("this file of the model cannot be read", where=str(path), got=error.strerror) from error


def read_json_of_model(path: Path) -> dict[str, Any]:
    """Return the fields of a JSON file that belongs to a model.

    Raises:
        ModelError: it is no JSON object, or cannot be read.
    """
    text = read_text_of_model(path)
    try:
        found = json.loads(text)
    except RecursionError:
        raise damaged(path, "more levels than JSON of a model has") from None
    except ValueError as error:  # also an integer of thousands of digits
        raise damaged(path, str(error)) from error
    if not isinstance(found, dict):
        raise damaged(path, type(found).__name__)
    return found


def damaged(path: object, got: str) -> ModelError:
    """Return the error for a file of a model that does not say what it should."""
    return ModelError("this file of the model is damaged", where=str(path), got=got, do="Download the model again")
