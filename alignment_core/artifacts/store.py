"""The artifact store: a folder that any number of runs may share.

    <store>/<kind>/<key>/…            an artifact: ordinary files and manifest.json
    <store>/quarantined/<key>.<n>/…   an artifact that no longer matches its manifest, moved aside
    <store>/.building/<key>/          `out` and `checkpoints` of a running or interrupted build
    <store>/.locks/<key>              locked (flock) by the process that builds the key, which removes it at the end
    <store>/.aliases/, .leases/       aliases; keys that running processes need
    <store>/.remote/                  the remote that this store shares its artifacts with, if it has one

A build writes to `out`, with the manifest last, and is published by one rename. An artifact with a manifest is
therefore complete.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from alignment_core.artifacts.aliases import Aliases
from alignment_core.artifacts.digest import hash_file
from alignment_core.artifacts.files import explain_unwritable, fsync
from alignment_core.artifacts.integrity import fault_in
from alignment_core.artifacts.key_lock import KeyLock
from alignment_core.artifacts.layout import (
    ALIASES,
    BUILDING,
    LEASES,
    LOCKS,
    OWN,
    QUARANTINE,
    check_folder,
    described,
    writable,
)
from alignment_core.artifacts.leases import Leases
from alignment_core.artifacts.manifest import MANIFEST, FileRecord, Manifest, read_manifest, write_manifest
from alignment_core.artifacts.remote.connection import remote_of
from alignment_core.artifacts.remote.shared_aliases import SharedAliases
from alignment_core.errors import ArtifactError
from alignment_core.progress import Progress, Stopped

KEY = re.compile(r"[0-9a-f]{32}")
POLL_SECONDS = 0.1
Warn = Callable[[str], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """An immutable folder with a manifest. Stages exchange nothing else.

    Attributes:
        kind: name of the stage that built it.
        key: content address.
        uri: location; an absolute path in a local store.
    """

    kind: str
    key: str
    uri: str

    @property
    def path(self) -> Path:
        return Path(self.uri)

    def manifest(self) -> Manifest:
        """Read the manifest of the artifact."""
        return read_manifest(self.path)


@dataclass(frozen=True)
class Building:
    """Exclusive access to build one key, held during the `with` block of `ArtifactStore.building`.

    Attributes:
        found: the artifact if another build has already finished it. There is nothing left to do then.
        out: an empty folder. `publish` turns its content into the artifact.
        checkpoints: a folder that survives a kill. `publish` removes it.
    """

    found: Artifact | None
    out: Path
    checkpoints: Path
    _target: Path

    @property
    def key(self) -> str:
        return self._target.name

    def publish(self, manifest: Manifest) -> Artifact:
        """Publish `out` as the artifact: flush the files, write the manifest last, then rename once.

        Args:
            manifest: the manifest without `files`, which is filled in here.
        """
        paths = sorted(path for path in self.out.rglob("*") if path.is_file())
        files = {
            path.relative_to(self.out).as_posix(): FileRecord(sha256=hash_file(path), size=path.stat().st_size)
            for path in paths
        }
        write_manifest(self.out, manifest.model_copy(update={"files": files}))
        folders = [path for path in self.out.rglob("*") if path.is_dir()]
        for path in [*paths, self.out / MANIFEST, *folders, self.out]:
            fsync(path)
        return self._move(self.out)

    def adopt(self, folder: Path) -> Artifact:
        """Publish a complete copy of the artifact, whose files have been verified, with its own manifest."""
        for path in [*folder.rglob("*"), folder]:
            fsync(path)
        return self._move(folder)

    def _move(self, folder: Path) -> Artifact:
        self._target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(self._target)
        fsync(self._target.parent)
        shutil.rmtree(self.out.parent, ignore_errors=True)  # `prune` removes what is left
        return Artifact(self._target.parent.name, self._target.name, str(self._target))


class ArtifactStore:
    """The artifact store in the folder `root`. The folder is created on the first build.

    Args:
        root: the folder.
        remote: address of the remote that it shares its artifacts with. None: the one that it has shared with before,
            if any. What goes to the remote and comes from there is in `sharing.py`.

    Raises:
        ArtifactError: it has shared with another remote before, or the remote cannot be opened.
    """

    def __init__(self, root: Path, remote: str | None = None) -> None:
        self.root = root.absolute()
        self.remote = remote_of(self.root, remote)
        self.aliases = Aliases(
            self.root / ALIASES, None if self.remote is None else SharedAliases(self.root, self.remote)
        )
        self.leases = Leases(self.root / LEASES)

    def find(self, key: str, warn: Warn = logger.warning) -> Artifact | None:
        """Return the artifact with this key after verifying every file against the manifest; None if there is none.

        A damaged artifact is moved to `quarantined/`, reported to `warn`, and treated as missing.

        Raises:
            ArtifactError: it may not be read, or it is damaged in a store that may not be written.
        """
        artifact, fault = self._inspect(key)
        if artifact is None or fault is None:
            return artifact
        if not writable(self.root):
            raise ArtifactError(
                f"the artifact is damaged, and cannot be moved aside in a read-only store: {fault}",
                where=str(artifact.path),
                do="Fix the permissions of the store, or choose another folder in `store`",
            )
        with self.lock(key) as lock:
            # A builder that holds the lock handles the damage itself.
            if lock.take():
                return self._find_locked(key, warn)
        return None

    def artifacts(self) -> Iterator[Artifact]:
        """Yield every artifact, unverified and in no particular order.

        Raises:
            ArtifactError: a folder of the store cannot be read.
        """
        for folder in self._kinds():
            check_folder(folder)
            for name in os.listdir(folder):
                if KEY.fullmatch(name):
                    yield Artifact(folder.name, name, str(folder / name))

    def fault(self, artifact: Artifact) -> str | None:
        """Return what is wrong with an artifact, or None if every file matches its manifest. Nothing is moved."""
        try:
            return fault_in(artifact.path, artifact.key)
        except PermissionError as error:
            return f"{error.filename} cannot be read: {error.strerror}"

    @contextmanager
    def building(self, kind: str, key: str, progress: Progress) -> Iterator[Building]:
        """Lock the key and prepare the folders. Wait if another process is building the same key.

        Raises:
            Stopped: the stage was asked to stop while it waited.
            ArtifactError: the store cannot be written.
        """
        with self.lock(key) as lock:
            _wait_for_lock(lock, key, progress)
            found = self._find_locked(key, progress.warn)
            place = self.root / BUILDING / key
            building = Building(found, place / "out", place / "checkpoints", self.root / kind / key)
            if found is not None:
                shutil.rmtree(place, ignore_errors=True)
                yield building
                return
            for path in (place, building.out, building.checkpoints):
                if path.is_symlink() or (path.exists() and not path.is_dir()):
                    progress.warn(f"{path} is not a folder. It was moved to {self._move_aside(path, key)}")
            with explain_unwritable(self.root):
                shutil.rmtree(building.out, ignore_errors=True)
                building.out.mkdir(parents=True)
                building.checkpoints.mkdir(exist_ok=True)
            try:
                yield building
            finally:
                shutil.rmtree(building.out, ignore_errors=True)

    def _inspect(self, key: str) -> tuple[Artifact | None, str | None]:
        """Return the artifact with this key, if there is one, and what is wrong with it."""
        folder = next((path for kind in self._kinds() if described(path := kind / key) is not None), None)
        if folder is None:
            return None, None
        try:
            return Artifact(folder.parent.name, key, str(folder)), fault_in(folder, key)
        except PermissionError as error:  # nothing says that it is damaged
            raise ArtifactError(
                "the artifact cannot be read",
                where=error.filename or str(folder),
                got=error.strerror,
                do="Fix its permissions",
            ) from error

    def _kinds(self) -> Iterator[Path]:
        """Yield the folders of artifacts."""
        check_folder(self.root, follow=True)
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root) as entries:
            # A link is one too: what reads or writes it says that it may not be one.
            names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
            yield from (self.root / name for name in names if name not in OWN)

    def _find_locked(self, key: str, warn: Warn) -> Artifact | None:
        """Look up the artifact again while holding the lock, and move it aside if it is damaged."""
        artifact, fault = self._inspect(key)
        if artifact is None or fault is None:
            return artifact
        place = self._move_aside(artifact.path, key)
        warn(f"{artifact.path} is damaged: {fault}. It was moved to {place} and will be rebuilt")
        return None

    def _move_aside(self, path: Path, key: str) -> Path:
        """Move what is in the way of a key to `quarantined/`. Return where it is now."""
        aside = self.root / QUARANTINE
        check_folder(aside)
        with explain_unwritable(self.root):
            aside.mkdir(exist_ok=True)
            place = next(place for n in itertools.count(1) if not os.path.lexists(place := aside / f"{key}.{n}"))
            path.rename(place)
        return place

    @contextmanager
    def lock(self, key: str) -> Iterator[KeyLock]:
        """Open the lock that the builder of the key holds. It is not taken yet, and is released after the block."""
        with explain_unwritable(self.root):
            (self.root / LOCKS).mkdir(parents=True, exist_ok=True)
            lock = KeyLock(self.root / LOCKS / key)
        try:
            yield lock
        finally:
            lock.close()


def _wait_for_lock(lock: KeyLock, key: str, progress: Progress) -> None:
    # Poll instead of blocking, so that a waiting stage can still be stopped.
    if lock.take():
        return
    progress.log(f"another run is building {key}, waiting for it")
    while not lock.take():
        if progress.stopping:
            raise Stopped
        time.sleep(POLL_SECONDS)
