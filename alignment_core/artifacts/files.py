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


def open_lock(path: Path) -> int:
    """Open a file for locking, and create it if it does not exist. A link is not followed: it could lead anywhere.

    Raises:
        OSError: the file cannot be opened or created.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)


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
            where=str(error.filename or root),
            got=error.strerror,
            do=f"Move it away or fix its permissions, or choose another `store` than {root}",
        ) from error
