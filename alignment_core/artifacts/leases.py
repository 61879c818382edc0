"""Leases: keys that running processes need, which `align artifacts prune` therefore keeps.

    <store>/.leases/<random>    the keys that one process needs; locked (flock) until that process exits
    <store>/.leases/.gate       locked shared while a lease is written, locked exclusively while pruning

A run leases every key of its plan before it looks up the first one, so an artifact that it finds is not pruned.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from alignment_core.artifacts.files import explain_unwritable, try_lock


class Leases:
    """The leases of a store, in the folder `folder`. The folder is created with the first lease."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def held(self, keys: Iterable[str]) -> Iterator[None]:
        """Protect these artifacts and their ancestors from pruning during the block.

        Raises:
            ArtifactError: the store cannot be written.
        """
        with self._gate(fcntl.LOCK_SH), explain_unwritable(self._folder.parent):
            path = self._folder / uuid4().hex
            lease = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            fcntl.flock(lease, fcntl.LOCK_EX)
            os.write(lease, json.dumps(sorted(set(keys))).encode())
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(lease)

    @contextmanager
    def alone(self) -> Iterator[set[str]]:
        """Yield every leased key. No process can get a new lease during the block."""
        with self._gate(fcntl.LOCK_EX):
            yield {key for path in self._folder.iterdir() if path.name != ".gate" for key in _read(path)}

    @contextmanager
    def _gate(self, how: int) -> Iterator[None]:
        with explain_unwritable(self._folder.parent):
            self._folder.mkdir(parents=True, exist_ok=True)
            gate = os.open(self._folder / ".gate", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(gate, how)
            yield
        finally:
            os.close(gate)


def _read(path: Path) -> list[str]:
    """Return the keys of a lease. If its process has exited, remove the file and return no keys."""
    try:
        with path.open("rb") as lease:
            if not try_lock(lease.fileno(), fcntl.LOCK_SH):
                return list(json.load(lease))
            path.unlink(missing_ok=True)
    except FileNotFoundError:  # the lease has just ended
        pass
    return []
