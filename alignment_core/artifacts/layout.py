"""What a store consists of, and whether a run can use it: found before a model is trained that cannot be stored."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

from alignment_core.artifacts.manifest import MANIFEST
from alignment_core.errors import ArtifactError

QUARANTINE = "quarantined"
BUILDING = ".building"
LOCKS = ".locks"
ALIASES = ".aliases"
LEASES = ".leases"
TRASH = ".trash"
REMOTE = ".remote"
OWN = (BUILDING, QUARANTINE, LOCKS, ALIASES, LEASES, TRASH, REMOTE)
"""The folders of a store that hold no artifacts."""
REPORTS = "reports"
"""The folder with the page of each run, `<name of the run>-<first 12 digits of its model's key>.html`."""
SHARD = "shard"
"""Kind of the artifacts that an `ingest` stage makes besides its own."""


def check_exists(root: Path) -> None:
    """Check that there is a store to read, because a mistyped path would look like an empty one.

    Raises:
        ArtifactError: there is none, or it is not a folder.
    """
    check_folder(root, follow=True)
    if not root.exists():
        raise ArtifactError(
            "there is no artifact store",
            where=str(root),
            do="Choose the folder of a run's `store` with `--store`, or run a pipeline first",
        )


def check_store(root: Path, artifacts: Iterable[tuple[str, str]]) -> None:
    """Check that a run can read its artifacts from the store and write the missing ones. The store may not exist yet.

    Args:
        root: folder of the store.
        artifacts: kind and key of every artifact of the run.

    Raises:
        ArtifactError: something in the store is in the way.
    """
    check_folder(root, follow=True)
    if not root.exists():
        _check_creatable(root)
    for name in OWN:
        check_folder(root / name)
    for folder in (root / ALIASES, root / LEASES):
        for path in folder.glob("*") if folder.name == ALIASES else [folder / ".gate"]:
            _check_file(path)
    check_folder(root / SHARD)
    missing = False
    for kind, key in artifacts:
        check_folder(root / kind)
        _check_file(root / LOCKS / key)
        if (root / kind / key).is_dir():
            check_folder(root / kind / key)
            _check_access(root / kind / key / MANIFEST, os.R_OK)
            continue
        missing = True
        place = root / BUILDING / key
        for path in (root / kind, place, place / "out", place / "checkpoints", root / LOCKS / key):
            _check_access(path, os.R_OK | os.W_OK)
    if missing:
        for name in ("", BUILDING, LOCKS, LEASES, f"{LEASES}/.gate", QUARANTINE, SHARD):
            _check_access(root / name, os.R_OK | os.W_OK)


def _check_creatable(root: Path) -> None:
    """Check that the folder can be created, with another one that is removed at once: permissions do not say it."""
    above = next(path for path in root.parents if os.path.lexists(path))
    attempt = above / f".align-{uuid4().hex}"
    try:
        attempt.mkdir()
        attempt.rmdir()
    except OSError as error:
        raise ArtifactError(
            "the artifact store cannot be created",
            where=str(root),
            got=f"{above}: {error.strerror}",
            do="Choose another folder in `store`",
        ) from error


def check_folder(path: Path, *, follow: bool = False) -> None:
    """Check that a path is a readable folder, or does not exist.

    Args:
        path: the path.
        follow: whether it may be a link to a folder. Inside a store it may not: nothing can be renamed into another
            file system.

    Raises:
        ArtifactError: it is something else, or cannot be read.
    """
    found = described(path)
    if found is not None and not (found == "a folder" or (follow and path.is_dir())):
        raise _in_the_way(path, found, "a folder")
    if found is not None and not _accessible(path, os.R_OK | os.X_OK):
        raise ArtifactError("the folder cannot be read", where=str(path), do="Fix its permissions")


def described(path: Path) -> str | None:
    """Return in words what a path is, or None if it does not exist."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ArtifactError(
            "the artifact store cannot be read", where=str(path), got=error.strerror, do="Fix its permissions"
        ) from error
    if stat.S_ISLNK(mode):
        return f"a link to {path.readlink()}" if path.exists() else f"a link to {path.readlink()}, which is missing"
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a file" if stat.S_ISREG(mode) else "a special file"


def writable(folder: Path) -> bool:
    """Return whether files can be created in a folder."""
    return _accessible(folder, os.W_OK | os.X_OK)


def _accessible(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _check_file(path: Path) -> None:
    found = described(path)
    if found not in (None, "a file"):
        raise _in_the_way(path, str(found), "a file")


def _check_access(path: Path, mode: int) -> None:
    """Check the permissions of a path, if it exists. Otherwise whoever needs it creates it."""
    if path.is_dir():
        mode |= os.X_OK
    if path.exists() and not _accessible(path, mode):
        raise ArtifactError(
            "the artifact store cannot be written, and it does not hold every stage of this run"
            if mode & os.W_OK
            else "the artifact cannot be read",
            where=str(path),
            do="Fix its permissions, or choose another folder in `store`",
        )


def _in_the_way(path: Path, found: str, expected: str) -> ArtifactError:
    return ArtifactError(
        "this is in the way of the artifact store",
        where=str(path),
        got=found,
        expected=expected,
        do="Move it away. What the store needs there is created anew",
    )
