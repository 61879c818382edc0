"""Remove artifacts that no alias and no running process needs.

An artifact is needed if it has an alias now or after a rollback, if a running process has leased it or is building it,
or if it is an ancestor of such an artifact. So are the gate's verdict on a model with an alias and the evaluation that
it judged, without which the model would count as not judged. All others can be rebuilt from their settings. The page
of a run goes with its model.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from alignment_core.artifacts.aliases import Aliases
from alignment_core.artifacts.catalogue import catalogue, lineage, readable_manifest
from alignment_core.artifacts.files import explain_unwritable
from alignment_core.artifacts.layout import BUILDING, LOCKS, OWN, QUARANTINE, REPORTS, TRASH, check_exists, check_folder
from alignment_core.artifacts.manifest import MANIFEST
from alignment_core.artifacts.models import JUDGING, verdicts_on
from alignment_core.artifacts.store import KEY, ArtifactStore
from alignment_core.errors import ArtifactError

PAGE = re.compile(r".+-([0-9a-f]{12})\.html")


@dataclass(frozen=True)
class Unneeded:
    """A folder or page that is no longer needed.

    Attributes:
        what: `artifact`, `unfinished build`, `damaged` or `report`.
        name: its path relative to the store.
        size: size on disk in bytes.
    """

    what: str
    name: str
    size: int


def prune(store: ArtifactStore, *, older_than_seconds: float = 0, dry_run: bool = False) -> list[Unneeded]:
    """Remove unneeded folders and pages, and return them.

    A run that starts meanwhile waits until the folders are selected. If this process is killed, every artifact is
    either complete or no longer in the store.

    Args:
        store: the artifact store.
        older_than_seconds: keep folders that were written more recently than this.
        dry_run: only return the folders that would be removed.

    Raises:
        ArtifactError: there is no store, it cannot be written, or an alias, a lease or a needed manifest is damaged.
    """
    check_exists(store.root)
    for name in OWN:
        check_folder(store.root / name)
    trash = store.root / TRASH / uuid4().hex
    items, removed = [], set[str]()
    with store.leases.alone() as leased:
        # Existing trash was left by a killed process, or a finished one is about to remove it.
        left = [] if dry_run else list((store.root / TRASH).glob("*"))
        needed = _needed(store, leased)
        newest = time.time() - older_than_seconds
        for what, path, key in _folders(store):
            if key in needed:
                continue
            with store.lock(key) as lock, _explain_unreadable(path):
                if not lock.take() or not os.path.lexists(path):
                    continue
                if older_than_seconds and _written(path) > newest:
                    continue
                if what == "artifact":
                    removed.add(key)
                items.append(Unneeded(what, path.relative_to(store.root).as_posix(), _size(path)))
                if not dry_run:
                    with explain_unwritable(store.root):
                        trash.mkdir(parents=True, exist_ok=True)
                        path.rename(trash / uuid4().hex)
        kept = {artifact.key for artifact in store.artifacts()} - removed
        pages = [path for path in _pages_without(store, kept) if not older_than_seconds or _written(path) <= newest]
        items += [Unneeded("report", path.relative_to(store.root).as_posix(), _size(path)) for path in pages]
        with explain_unwritable(store.root):
            for path in [] if dry_run else pages:
                path.unlink()
    for path in [] if dry_run else [*left, trash]:
        _remove(path)
    if not dry_run:
        _remove_left_locks(store)
    return sorted(items, key=lambda item: item.name)


def _pages_without(store: ArtifactStore, kept: Iterable[str]) -> Iterator[Path]:
    """Yield the pages of runs whose model is not among the kept artifacts."""
    check_folder(store.root / REPORTS)
    models = {key[:12] for key in kept}
    for path in (store.root / REPORTS).glob("*.html"):
        if (page := PAGE.fullmatch(path.name)) and page[1] not in models:
            yield path


def _remove_left_locks(store: ArtifactStore) -> None:
    """Remove the lock files of killed processes."""
    for path in (store.root / LOCKS).glob("*"):
        if KEY.fullmatch(path.name) and path.is_file():
            with store.lock(path.name) as lock:
                lock.take()


def _needed(store: ArtifactStore, leased: Iterable[str]) -> set[str]:
    named = set(named_keys(store.aliases))
    manifests = {
        entry.artifact.key: entry.manifest for entry in catalogue(store, JUDGING) if entry.manifest is not None
    }
    found = lineage(store, [*leased, *named])
    for artifact in found.values():
        if artifact is not None and readable_manifest(artifact) is None:
            raise ArtifactError(
                "nothing was removed: the manifest of a needed artifact cannot be read, so its ancestors are unknown",
                where=str(artifact.path / MANIFEST),
                do="Run its pipeline again to rebuild it, or promote another model",
            )
    return set(found) | verdicts_on(named, manifests)


def named_keys(aliases: Aliases) -> Iterator[str]:
    """Yield the keys that an alias points to, or would point to after a rollback."""
    for name in aliases.names():
        yield from (change.key for change in (aliases.current(name), aliases.before(name)) if change)


def _folders(store: ArtifactStore) -> Iterator[tuple[str, Path, str]]:
    """Yield every folder that could be removed as (what, path, key)."""
    for artifact in list(store.artifacts()):
        yield "artifact", artifact.path, artifact.key
    for path in (store.root / BUILDING).glob("*"):
        yield "unfinished build", path, path.name
    for path in (store.root / QUARANTINE).glob("*"):
        yield "damaged", path, path.name.partition(".")[0]


@contextlib.contextmanager
def _explain_unreadable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            "pruning stopped: this cannot be read",
            where=str(error.filename or path),
            got=error.strerror,
            do="Fix its permissions, or remove it by hand, and prune again",
        ) from error


def _written(path: Path) -> float:
    """Return the latest modification time of a path and, if it is a folder, of its direct children."""
    children = path.iterdir() if path.is_dir() and not path.is_symlink() else ()
    return max((found.lstat().st_mtime for found in (path, *children)), default=0.0)


def _size(path: Path) -> int:
    """Return the size of the file, or of the files in the folder. Links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(path) for name in names)


def _remove(path: Path) -> None:
    """Remove what was moved to the trash, as far as it can be removed. The next pruner tries again."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()
