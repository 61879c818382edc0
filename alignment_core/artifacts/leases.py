"""Leases: keys that running processes need, which `align artifacts prune` therefore keeps.

    <store>/.leases/<random>    the keys that one process needs; locked (flock) until that process exits; removed by
                                the next run or pruning if it was killed
    <store>/.leases/.gate       locked shared while a lease is written, locked exclusively while pruning

A run leases every key of its plan before it looks up the first one, so an artifact that it finds is not pruned.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from alignment_core.artifacts.files import explain_unwritable, open_file, open_lock, try_lock
from alignment_core.artifacts.layout import check_folder, writable
from alignment_core.errors import ArtifactError

GATE = ".gate"
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)

logger = logging.getLogger(__name__)


class Leases:
    """The leases of a store, in the folder `folder`. The folder is created with the first lease."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def held(self, keys: Iterable[str]) -> Iterator[None]:
        """Protect these artifacts and their ancestors from pruning during the block.

        In a store that this process may only read, nothing is protected, and the log says so.

        Raises:
            ArtifactError: the store cannot be written, although its folder can.
        """
        store = self._folder.parent
        try:
            path, lease = self._lease(keys)
        except ArtifactError as error:
            reason = error.__cause__
            if not (isinstance(reason, OSError) and reason.errno in READ_ONLY and store.is_dir()) or writable(store):
                raise
            logger.info("%s is read-only: its artifacts are not protected from pruning during this run", store)
            yield
            return
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(lease)

    def _lease(self, keys: Iterable[str]) -> tuple[Path, int]:
        """Write a lease. Return its path and its open, locked file."""
        with self._gate(fcntl.LOCK_SH) as gate, explain_unwritable(self._folder.parent):
            self._clear(gate)
            path = self._folder / uuid4().hex
            lease = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            fcntl.flock(lease, fcntl.LOCK_EX)
            os.write(lease, json.dumps(sorted(set(keys))).encode())
            return path, lease

    def _clear(self, gate: int) -> None:
        """Remove the leases of killed processes, unless another process is writing one, which may not be locked yet."""
        if try_lock(gate):
            for path in self._folder.iterdir():
                with suppress(OSError), open_file(path) as lease:
                    if path.name != GATE and try_lock(lease.fileno(), fcntl.LOCK_SH):
                        path.unlink()
        fcntl.flock(gate, fcntl.LOCK_SH)  # also after a failure, which lets go of the lock

    @contextmanager
    def alone(self) -> Iterator[set[str]]:
        """Yield every leased key. No process can get a new lease during the block."""
        with self._gate(fcntl.LOCK_EX):
            yield {key for path in self._folder.iterdir() if path.name != GATE for key in _read(path)}

    @contextmanager
    def _gate(self, how: int) -> Iterator[int]:
        check_folder(self._folder)
        with explain_unwritable(self._folder.parent):
            self._folder.mkdir(parents=True, exist_ok=True)
            gate = open_lock(self._folder / GATE)
        try:
            fcntl.flock(gate, how)
            yield gate
        finally:
            os.close(gate)


def _read(path: Path) -> list[str]:
    """Return the keys of a lease. If its process has exited, remove the file and return no keys.

    Raises:
        ArtifactError: the file is not a lease, so a running process may need any artifact.
    """
    try:
        with open_file(path) as lease:
            if not try_lock(lease.fileno(), fcntl.LOCK_SH):
                return list(json.load(lease))
            path.unlink(missing_ok=True)
    except FileNotFoundError:  # the lease has just ended
        pass
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(
            "nothing was removed: this lease cannot be read, so it is unknown what a running process needs",
            where=str(path),
            got=str(error),
            do="Wait until no run uses the store, and move the file away",
        ) from error
    return []
