"""Temporary folders. Those of killed processes are removed when the next one is made.

<folder for temporary files>/alignment-flows-<user>/<purpose>-<random>/   locked (flock) by its process
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from alignment_core.errors import ConfigError

NEW_SECONDS = 60.0
"""A younger folder may belong to a process that has not locked it yet."""


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """Yield an empty folder that only this user can open, and remove it after the block.

    If this process is killed, the next call of this function in any process removes it.

    Args:
        purpose: a word for its name.

    Raises:
        ConfigError: the folder of all temporary folders is not one that only this user can open.
    """
    parent = _parent()
    for path in parent.iterdir():
        with suppress(OSError):  # another process is removing it
            _remove_if_left(path)
    made = tempfile.TemporaryDirectory(prefix=f"{purpose}-", dir=parent, ignore_cleanup_errors=True)
    lock = os.open(made.name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks: nobody removes it
            fcntl.flock(lock, fcntl.LOCK_SH)
        with made:
            yield Path(made.name)
    finally:
        os.close(lock)


def _parent() -> Path:
    parent = Path(tempfile.gettempdir()) / f"alignment-flows-{os.geteuid()}"
    with suppress(FileExistsError):
        parent.mkdir(mode=0o700)
    found = parent.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConfigError(
            "the folder for temporary files is not one that only you can open",
            where=str(parent),
            do="Remove it, or set TMPDIR to another folder",
        )
    return parent


def _remove_if_left(path: Path) -> None:
    if time.time() - path.lstat().st_mtime < NEW_SECONDS:
        return
    lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for folder, names, _ in os.walk(path):
            for name in names:
                if not os.path.islink(inner := os.path.join(folder, name)):
                    os.chmod(inner, 0o700)  # a program may have locked itself out
        shutil.rmtree(path)
    finally:
        os.close(lock)
