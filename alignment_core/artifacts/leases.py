"""What running processes need, so that `align artifacts prune` leaves it alone.

    <store>/.leases/<random>    keys that one process needs: held (flock) by it; the system frees it at its death
    <store>/.leases/.gate       held shared while a lease is written, alone while what nobody needs is taken away

A run leases every key of its plan before it looks for the first: whatever it then finds stays.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from alignment_core.artifacts.files import told_if_unwritable, try_lock


class Leases:
    """The leases of a store, in the folder `folder`, which is made with the first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def held(self, keys: Iterable[str]) -> Iterator[None]:
        """Nothing that these artifacts are made from, nor they themselves, is pruned while the block lasts.

        Raises:
            ArtifactError: the store cannot be written.
        """
        with self._gate(fcntl.LOCK_SH), told_if_unwritable(self._folder.parent):
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
        """Every leased key; no process gets another lease while the block lasts."""
        with self._gate(fcntl.LOCK_EX):
            yield {key for path in self._folder.iterdir() if path.name != ".gate" for key in _read(path)}

    @contextmanager
    def _gate(self, how: int) -> Iterator[None]:
        with told_if_unwritable(self._folder.parent):
            self._folder.mkdir(parents=True, exist_ok=True)
            gate = os.open(self._folder / ".gate", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(gate, how)
            yield
        finally:
            os.close(gate)


def _read(path: Path) -> list[str]:
    """The keys of a lease; none, and its file removed, if the process that held it is gone."""
    try:
        with path.open("rb") as lease:
            if not try_lock(lease.fileno(), fcntl.LOCK_SH):
                return list(json.load(lease))
            path.unlink(missing_ok=True)
    except FileNotFoundError:  # given back just now
        pass
    return []
