"""File operations of the artifact store: fsync, file locks and readable write errors."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignment_core.errors import ArtifactError


def fsync(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_lock(descriptor: int, how: int = fcntl.LOCK_EX) -> bool:
    """Try to lock an open file (flock). Return False if another process holds the lock."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def explain_unwritable(root: Path) -> Iterator[None]:
    """Turn an `OSError` in the block into an `ArtifactError` that says that the store cannot be written."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            "the artifact store cannot be written",
            where=str(root),
            got=error.strerror,
            do="Choose another folder in `store`, or fix its permissions",
        ) from error
