"""Leases in the remote: who builds a key, and which keys a run needs.

    leases/builds/<key>      held by the machine that builds the key
    leases/runs/<random>     the keys that a run needs

The holder writes its lease again every `BEAT_SECONDS`, with a higher count. Clocks of two machines are never compared:
a machine that waits for a build takes the lease over after it has seen the same count for `PATIENCE_SECONDS` of its own
time, and a pruner compares times of the remote's own clock. A lease saves work and no more: two machines that build the
same key all the same do no harm, because the remote keeps one of the two artifacts.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from uuid import uuid4

from pydantic import TypeAdapter

from alignment_core.artifacts.remote.objects import Conflict, Objects, Unreachable
from alignment_core.errors import ArtifactError
from alignment_core.progress import Progress, Stopped

BUILDS, RUNS = "leases/builds/", "leases/runs/"
BEAT_SECONDS = 15.0
PATIENCE_SECONDS = 120.0
"""A holder may miss several beats, because its network or its disk is slow."""
POLL_SECONDS = 5.0
LIVE_SECONDS = 900.0
"""A pruner regards a lease as live for this long after its last beat."""


class _Lease:
    """A lease that this process holds, and the thread that renews it."""

    def __init__(self, objects: Objects, name: str, keys: Iterable[str], progress: Progress) -> None:
        self._objects, self._name, self._progress = objects, name, progress
        self._holder, self._keys = uuid4().hex, sorted(set(keys))
        self._beat = 0
        self._tag = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def take(self, replacing: str | None) -> None:
        """Write the lease for the first time, and renew it from now on.

        Raises:
            Conflict, Unreachable
        """
        self._tag = self._objects.write(self._name, self._content(), replacing)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(Unreachable):
            there = self._objects.read(self._name)
            if there is not None and there[1] == self._tag:
                self._objects.delete([self._name])

    def _renew(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self._beat += 1
            try:
                self._tag = self._objects.write(self._name, self._content(), self._tag)
            except Unreachable:
                continue
            except Conflict:
                self._progress.warn(
                    f"another machine has taken over the lease {self._name}, because this one was silent for too long. "
                    "Both go on; the remote keeps the artifact that is pushed first"
                )
                return

    def _content(self) -> bytes:
        fields = {"holder": self._holder, "host": socket.gethostname(), "beat": self._beat, "keys": self._keys}
        return json.dumps(fields).encode()


@contextmanager
def build_lease(objects: Objects, key: str, needs: Iterable[str], progress: Progress) -> Iterator[None]:
    """Hold the lease to build a key. Wait while another machine holds it and is alive.

    Args:
        objects: the remote.
        key: the key.
        needs: keys that the build reads.
        progress: is told when this machine waits.

    Raises:
        Stopped: the stage was asked to stop while it waited.
        Unreachable: the remote cannot be used.
    """
    lease = _Lease(objects, BUILDS + key, [key, *needs], progress)
    while True:
        try:
            lease.take(_free(objects, key, progress))
        except Conflict:
            continue
        break
    try:
        yield
    finally:
        lease.end()


@contextmanager
def run_lease(objects: Objects, keys: Iterable[str], progress: Progress) -> Iterator[None]:
    """Tell pruners during the block that a run needs these keys.

    Raises:
        Unreachable: the remote cannot be used.
    """
    lease = _Lease(objects, RUNS + uuid4().hex, keys, progress)
    lease.take(None)
    try:
        yield
    finally:
        lease.end()


def _free(objects: Objects, key: str, progress: Progress) -> str | None:
    """Wait until nobody builds the key. Return the tag of a lease that may be taken over, None if there is none."""
    name, since, seen = BUILDS + key, time.monotonic(), None
    while True:
        there = objects.read(name)
        if there is None:
            return None
        if there[1] != seen:
            if seen is None:
                progress.log(f"{_host(there[0])} is building {key}, waiting for it")
            since, seen = time.monotonic(), there[1]
        elif time.monotonic() - since >= PATIENCE_SECONDS:
            progress.log(f"{_host(there[0])} has been silent for {PATIENCE_SECONDS:.0f} s: building {key} here")
            return seen
        if progress.stopping:
            raise Stopped
        time.sleep(POLL_SECONDS)


def _host(content: bytes) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(content)["host"])
    return "another machine"


def live_keys(objects: Objects) -> set[str]:
    """Return every key that a live lease names, by the clock of the remote. Leases that are dead are removed.

    Raises:
        Unreachable: the remote cannot be used.
        ArtifactError: a lease is damaged.
    """
    now, keys, dead = objects.now(), set[str](), []
    for stored in objects.list("leases/"):
        if now - stored.modified > LIVE_SECONDS:
            dead.append(stored.name)
        elif (there := objects.read(stored.name)) is not None:
            keys.update(_keys_in(there[0], f"{objects.address}/{stored.name}"))
    objects.delete(dead)
    return keys


def _keys_in(content: bytes, place: str) -> list[str]:
    """Return the keys that a lease names.

    Raises:
        ArtifactError: it is not a lease, so a machine may need any artifact.
    """
    try:
        return TypeAdapter(list[str]).validate_python(json.loads(content)["keys"], strict=True)
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(
            "nothing was removed: this lease cannot be read, so it is unknown what a machine needs",
            where=place,
            do=f"Try again {LIVE_SECONDS / 60:.0f} minutes after it was written, when it no longer counts",
        ) from error
