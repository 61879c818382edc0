"""Takes away what nobody needs.

Needed is what has an alias now, or would have it after a rollback; what a running process has leased or is building;
and everything that these are made from. All else can be built again from its settings.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from alignment_core.artifacts.catalogue import lineage, readable
from alignment_core.artifacts.files import try_lock
from alignment_core.artifacts.manifest import MANIFEST
from alignment_core.artifacts.store import BUILDING, QUARANTINE, ArtifactStore
from alignment_core.errors import ArtifactError

TRASH = ".trash"


@dataclass(frozen=True)
class Item:
    """One folder that nobody needs.

    Attributes:
        what: `artifact`, `unfinished build` or `damaged`.
        name: its path relative to the store.
        size: bytes on the disk.
    """

    what: str
    name: str
    size: int


def prune(store: ArtifactStore, *, older_than_seconds: float = 0, dry_run: bool = False) -> list[Item]:
    """Remove what nobody needs, and return it.

    A run that starts meanwhile waits for the moment that the choice takes; a kill leaves every artifact either whole or
    out of the store.

    Args:
        store: the store.
        older_than_seconds: what was made or last written to more recently stays.
        dry_run: only return what would be removed.

    Raises:
        ArtifactError: the store cannot be written, or an alias's file is damaged.
    """
    if not store.root.is_dir():
        return []
    trash = store.root / TRASH / uuid4().hex
    items = []
    with store.leases.alone() as leased:
        # What is there already, a killed process has left or a finished one is about to remove.
        left = [] if dry_run else list((store.root / TRASH).glob("*"))
        needed = _needed(store, leased)
        newest = time.time() - older_than_seconds
        for what, path, key in _folders(store):
            if key in needed or _written(path) > newest:
                continue
            with store.lock_file(key) as lock:
                if not try_lock(lock) or not path.is_dir():
                    continue
                items.append(Item(what, path.relative_to(store.root).as_posix(), _size(path)))
                if not dry_run:
                    trash.mkdir(parents=True, exist_ok=True)
                    path.rename(trash / uuid4().hex)
    for folder in [] if dry_run else [*left, trash]:
        shutil.rmtree(folder, ignore_errors=True)
    return sorted(items, key=lambda item: item.name)


def _needed(store: ArtifactStore, leased: Iterable[str]) -> set[str]:
    found = lineage(store, [*leased, *_named(store)])
    for artifact in found.values():
        if artifact is not None and readable(artifact) is None:
            raise ArtifactError(
                "nothing is removed: what this artifact is made from cannot be read, and its alias or a run needs it",
                where=str(artifact.path / MANIFEST),
                do="Run its pipeline again, which rebuilds it, or promote another",
            )
    return set(found)


def _named(store: ArtifactStore) -> Iterator[str]:
    """Keys that an alias has, or would have after a rollback."""
    for name in store.aliases.names():
        yield from (change.key for change in (store.aliases.current(name), store.aliases.before(name)) if change)


def _folders(store: ArtifactStore) -> Iterator[tuple[str, Path, str]]:
    """Whatever could be removed: what it is, where, and the key that it belongs to."""
    for artifact in list(store.artifacts()):
        yield "artifact", artifact.path, artifact.key
    for path in (store.root / BUILDING).glob("*"):
        yield "unfinished build", path, path.name
    for path in (store.root / QUARANTINE).glob("*"):
        yield "damaged", path, path.name.partition(".")[0]


def _written(folder: Path) -> float:
    """When something was last made or removed in the folder, or in those directly in it."""
    return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
