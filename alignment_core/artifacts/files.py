"""Files of the store: locked, on the disk before going on, and in words where they cannot be written."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignment_core.errors import ArtifactError


def fsync(path: Path) -> None:
    """Have a file or folder on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_lock(descriptor: int, how: int = fcntl.LOCK_EX) -> bool:
    """Lock an open file (flock), and tell whether no other process had it."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def told_if_unwritable(root: Path) -> Iterator[None]:
    """Raises: ArtifactError where what is done inside fails for want of a folder that can be written."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            "the artifact store cannot be written",
            where=str(root),
            got=error.strerror,
            do="Choose another folder with `store`, or mend its permissions",
        ) from error
