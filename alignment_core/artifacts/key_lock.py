"""The lock of a key, held by the process that builds it. Its file goes with the process that held it last."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from alignment_core.artifacts.files import open_lock, try_lock


class KeyLock:
    """An open lock file. `take` locks it; `close` unlocks it and removes the file.

    Args:
        path: the file. It is created if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open_lock(path)
        self._held = False

    def take(self) -> bool:
        """Try to lock. Return False if another process holds the lock."""
        while try_lock(self._file):
            # Whoever held it has removed the file: a lock on what is left of it keeps nobody out.
            if self._is_at_path():
                self._held = True
                return True
            os.close(self._file)
            self._file = open_lock(self._path)
        return False

    def _is_at_path(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), os.lstat(self._path))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Unlock, if it is locked. A process that waits for the lock creates the file anew."""
        if self._held:
            with contextlib.suppress(OSError):  # in a folder of another user
                self._path.unlink()
        os.close(self._file)
