"""SHA-256 of files and folders. Digests are cached by file stat, so a 16 GB model is not read at every start."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

REMEMBERED_FROM = 4 * 2**20
"""File size in bytes from which a lookup is cheaper than hashing the file again."""
SETTLED_SECONDS = 2.0
"""A file that changed more recently than this may change again within one tick of the file system clock."""


def file_digest(path: Path) -> str:
    """Return the SHA-256 of the file's content as 64 hexadecimal digits. Name, location and times do not matter.

    Digests of large files are cached by (path, size, mtime, ctime, inode). Touching or moving a file only means that it
    is read again.
    """
    path = path.resolve()
    before = path.stat()
    if before.st_size < REMEMBERED_FROM:
        return hash_file(path)
    stamp = (before.st_size, before.st_mtime_ns, before.st_ctime_ns, before.st_ino)
    if (cached := _recall(path, stamp)) is not None:
        return cached
    digest = hash_file(path)
    after = path.stat()
    settled = time.time() - max(after.st_mtime, after.st_ctime) > SETTLED_SECONDS
    if settled and stamp == (after.st_size, after.st_mtime_ns, after.st_ctime_ns, after.st_ino):
        _remember(path, stamp, digest)
    return digest


def hash_file(path: Path) -> str:
    """Return the SHA-256 of the file's content, always read from disk."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(root: Path, files: Iterable[Path] | None = None) -> str:
    """Return the SHA-256 over the relative names and contents of `files` below `root` (default: all), in any order."""
    chosen = [path for path in root.rglob("*") if path.is_file()] if files is None else list(files)
    total = hashlib.sha256()
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in chosen):
        total.update(f"{file_digest(path)}  {name}\n".encode())
    return total.hexdigest()


def cache_folder() -> Path:
    """Return the user's cache folder for this package, in `XDG_CACHE_HOME` or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignment-flows"


Stamp = tuple[int, int, int, int]


@contextmanager
def _memory() -> Iterator[sqlite3.Connection]:
    """Open the database of cached digests. SQLite makes concurrent writes safe."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(folder / "digests.sqlite", timeout=10)) as connection, connection:
        connection.execute(
            "create table if not exists digests"
            " (path text primary key, size integer, mtime integer, ctime integer, inode integer, sha256 text)"
        )
        yield connection


# If the cache cannot be read or written (read-only home, full disk), files are hashed again and the run continues.
_UNUSABLE = (OSError, sqlite3.Error)


def _recall(path: Path, stamp: Stamp) -> str | None:
    query = "select sha256 from digests where path = ? and size = ? and mtime = ? and ctime = ? and inode = ?"
    with contextlib.suppress(*_UNUSABLE), _memory() as connection:
        row = connection.execute(query, (str(path), *stamp)).fetchone()
        return None if row is None else str(row[0])
    return None


def _remember(path: Path, stamp: Stamp, digest: str) -> None:
    with contextlib.suppress(*_UNUSABLE), _memory() as connection:
        connection.execute("insert or replace into digests values (?, ?, ?, ?, ?, ?)", (str(path), *stamp, digest))
