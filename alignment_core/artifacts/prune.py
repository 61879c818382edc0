"""Remove artifacts that no alias and no running process needs.

An artifact is needed if it has an alias now or after a rollback, if a running process has leased it or is building it,
or if it is an ancestor of such an artifact. All others can be rebuilt from their settings.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from alignment_core.artifacts.catalogue import lineage, readable_manifest
from alignment_core.artifacts.files import try_lock
from alignment_core.artifacts.manifest import MANIFEST
from alignment_core.artifacts.store import BUILDING, QUARANTINE, ArtifactStore
from alignment_core.errors import ArtifactError

TRASH = ".trash"


@dataclass(frozen=True)
class Unneeded:
    """A folder that is no longer needed.

    Attributes:
        what: `artifact`, `unfinished build` or `damaged`.
        name: its path relative to the store.
        size: size on disk in bytes.
    """

    what: str
    name: str
    size: int


def prune(store: ArtifactStore, *, older_than_seconds: float = 0, dry_run: bool = False) -> list[Unneeded]:
    """Remove unneeded folders and return them.

    A run that starts meanwhile waits until the folders are selected. If this process is killed, every artifact is
    either complete or no longer in the store.

    Args:
        store: the artifact store.
        older_than_seconds: keep folders that were written more recently than this.
        dry_run: only return the folders that would be removed.

    Raises:
        ArtifactError: the store cannot be written, an alias file is damaged, or a needed manifest is unreadable.
    """
    if not store.root.is_dir():
        return []
    trash = store.root / TRASH / uuid4().hex
    items = []
    with store.leases.alone() as leased:
        # Existing trash was left by a killed process, or a finished one is about to remove it.
        left = [] if dry_run else list((store.root / TRASH).glob("*"))
        needed = _needed(store, leased)
        newest = time.time() - older_than_seconds
        for what, path, key in _folders(store):
            if key in needed or _written(path) > newest:
                continue
            with store.lock_file(key) as lock:
                if not try_lock(lock) or not path.is_dir():
                    continue
                items.append(Unneeded(what, path.relative_to(store.root).as_posix(), _size(path)))
                if not dry_run:
                    trash.mkdir(parents=True, exist_ok=True)
                    path.rename(trash / uuid4().hex)
    for folder in [] if dry_run else [*left, trash]:
        shutil.rmtree(folder, ignore_errors=True)
    return sorted(items, key=lambda item: item.name)


def _needed(store: ArtifactStore, leased: Iterable[str]) -> set[str]:
    found = lineage(store, [*leased, *_named(store)])
    for artifact in found.values():
        if artifact is not None and readable_manifest(artifact) is None:
            raise ArtifactError(
                "nothing was removed: the manifest of a needed artifact cannot be read, so its ancestors are unknown",
                where=str(artifact.path / MANIFEST),
                do="Run its pipeline again to rebuild it, or promote another model",
            )
    return set(found)


def _named(store: ArtifactStore) -> Iterator[str]:
    """Yield the keys that an alias points to, or would point to after a rollback."""
    for name in store.aliases.names():
        yield from (change.key for change in (store.aliases.current(name), store.aliases.before(name)) if change)


def _folders(store: ArtifactStore) -> Iterator[tuple[str, Path, str]]:
    """Yield every folder that could be removed as (what, path, key)."""
    for artifact in list(store.artifacts()):
        yield "artifact", artifact.path, artifact.key
    for path in (store.root / BUILDING).glob("*"):
        yield "unfinished build", path, path.name
    for path in (store.root / QUARANTINE).glob("*"):
        yield "damaged", path, path.name.partition(".")[0]


def _written(folder: Path) -> float:
    """Return the latest modification time of the folder and its direct children."""
    return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
