"""A folder of artifacts that any number of runs may share.

    <store>/<kind>/<key>/…            the artifact: ordinary files and manifest.json
    <store>/quarantined/<key>.<n>/…   one that no longer matched its manifest, moved aside
    <store>/.building/<key>/          `out` and `checkpoints` of a build that is under way, or was interrupted
    <store>/.locks/<key>              held (flock) by the process that builds the key; the system frees it at its death
    <store>/.aliases/, .leases/       names for artifacts; what running processes need

A build writes to `out`, the manifest last, and is published by one rename: what has a manifest is whole.
"""

from __future__ import annotations

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
from alignment_core.artifacts.files import fsync, told_if_unwritable, try_lock
from alignment_core.artifacts.leases import Leases
from alignment_core.artifacts.manifest import MANIFEST, FileRecord, Manifest, read_manifest
from alignment_core.progress import Progress, Stopped

QUARANTINE = "quarantined"
BUILDING = ".building"
KEY = re.compile(r"[0-9a-f]{32}")
POLL_SECONDS = 0.1
Warn = Callable[[str], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """An immutable folder with a manifest: the only thing that passes between stages.

    Attributes:
        kind: name of the stage that made it.
        key: content address.
        uri: where it lies; a plain absolute path in a local store.
    """

    kind: str
    key: str
    uri: str

    @property
    def path(self) -> Path:
        return Path(self.uri)

    def manifest(self) -> Manifest:
        """What the artifact says about itself."""
        return read_manifest(self.path)


@dataclass(frozen=True)
class Building:
    """The right to build one key, held while the `with` block of `ArtifactStore.building` lasts.

    Attributes:
        found: the artifact, if another build finished it first; there is nothing left to do then.
        out: an empty folder; what lies in it when `publish` is called becomes the artifact.
        checkpoints: a folder that survives a kill and is dropped by `publish`.
    """

    found: Artifact | None
    out: Path
    checkpoints: Path
    _target: Path

    def publish(self, manifest: Manifest) -> Artifact:
        """Make `out` the artifact: files to the disk, manifest last, then one rename.

        Args:
            manifest: everything but `files`, which is filled in here.
        """
        paths = sorted(path for path in self.out.rglob("*") if path.is_file())
        files = {
            path.relative_to(self.out).as_posix(): FileRecord(sha256=hash_file(path), size=path.stat().st_size)
            for path in paths
        }
        complete = manifest.model_copy(update={"files": files})
        (self.out / MANIFEST).write_text(complete.model_dump_json(indent=2) + "\n", encoding="utf-8")
        folders = [path for path in self.out.rglob("*") if path.is_dir()]
        for path in [*paths, self.out / MANIFEST, *folders, self.out]:
            fsync(path)
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self.out.rename(self._target)
        fsync(self._target.parent)
        shutil.rmtree(self.out.parent)
        return Artifact(manifest.kind, manifest.key, str(self._target))


class ArtifactStore:
    """The store in the folder `root`, which is made on the first build."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.aliases = Aliases(self.root / ".aliases")
        self.leases = Leases(self.root / ".leases")

    def find(self, key: str, warn: Warn = logger.warning) -> Artifact | None:
        """The finished artifact with this key, every file of it verified against the manifest.

        One that is damaged is moved to `quarantined/`, reported to `warn`, and counts as absent.
        """
        artifact, fault = self._inspect(key)
        if fault is None:
            return artifact
        with self.lock_file(key) as lock:
            # A builder that holds the lock sees to the damage itself.
            if try_lock(lock):
                return self._mend(key, warn)
        return None

    def artifacts(self) -> Iterator[Artifact]:
        """Every artifact, unverified, in no order."""
        for folder in self.root.glob("*/*"):
            kind = folder.parent.name
            if not kind.startswith(".") and KEY.fullmatch(folder.name):
                yield Artifact(kind, folder.name, str(folder))

    def fault(self, artifact: Artifact) -> str | None:
        """What is wrong with an artifact; None if every file of it is as its manifest says. Nothing is moved."""
        return _fault(artifact.path, artifact.key)

    @contextmanager
    def building(self, kind: str, key: str, progress: Progress) -> Iterator[Building]:
        """Take the key's lock, waiting for another builder of the same key, and prepare the folders.

        Raises:
            Stopped: the stage was asked to stop while it waited.
            ArtifactError: the store's folder cannot be written.
        """
        with self.lock_file(key) as lock:
            _wait_for_lock(lock, key, progress)
            found = self._mend(key, progress.warn)
            place = self.root / BUILDING / key
            building = Building(found, place / "out", place / "checkpoints", self.root / kind / key)
            if found is not None:
                shutil.rmtree(place, ignore_errors=True)
                yield building
                return
            shutil.rmtree(building.out, ignore_errors=True)
            building.out.mkdir(parents=True)
            building.checkpoints.mkdir(exist_ok=True)
            try:
                yield building
            finally:
                shutil.rmtree(building.out, ignore_errors=True)

    def _inspect(self, key: str) -> tuple[Artifact | None, str | None]:
        """The artifact with this key if there is one, and what is wrong with it."""
        folders = (path for path in self.root.glob(f"*/{key}") if not path.parent.name.startswith("."))
        folder = next((path for path in folders if path.is_dir()), None)
        if folder is None:
            return None, None
        return Artifact(folder.parent.name, key, str(folder)), _fault(folder, key)

    def _mend(self, key: str, warn: Warn) -> Artifact | None:
        """Look again now that the lock is held, and move a damaged artifact aside."""
        artifact, fault = self._inspect(key)
        if artifact is None or fault is None:
            return artifact
        aside = self.root / QUARANTINE
        aside.mkdir(exist_ok=True)
        place = next(path for n in itertools.count(1) if not (path := aside / f"{key}.{n}").exists())
        artifact.path.rename(place)
        warn(f"{artifact.path}: {fault}; moved to {place}, and it will be built again")
        return None

    @contextmanager
    def lock_file(self, key: str) -> Iterator[int]:
        """The open file that whoever builds the key locks."""
        with told_if_unwritable(self.root):
            (self.root / ".locks").mkdir(parents=True, exist_ok=True)
            lock = os.open(self.root / ".locks" / key, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            yield lock
        finally:
            os.close(lock)


def _fault(folder: Path, key: str) -> str | None:
    """What is wrong with the artifact in `folder`; None if every file is as its manifest says."""
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError):
        return f"{MANIFEST} cannot be read"
    if manifest.key != key or manifest.kind != folder.parent.name:
        return f"{MANIFEST} belongs to {manifest.kind}/{manifest.key}"
    for name, record in manifest.files.items():
        path = folder / name
        try:
            same = path.stat().st_size == record.size and hash_file(path) == record.sha256
        except OSError:
            return f"{name} is missing"
        if not same:
            return f"{name} is not what {MANIFEST} says"
    return None


def _wait_for_lock(lock: int, key: str, progress: Progress) -> None:
    # Polled rather than blocked on, so that a stage that waits can still be stopped.
    if try_lock(lock):
        return
    progress.log(f"another run is building {key}; waiting for it")
    while not try_lock(lock):
        if progress.stopping:
            raise Stopped
        time.sleep(POLL_SECONDS)
