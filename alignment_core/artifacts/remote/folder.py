"""A remote in a folder that machines share, such as one on NFS.

    <folder>/<name>      an object
    <folder>/.new/…      objects that are being written
    <folder>/.lock       locked (flock) while an object is replaced

A new object is linked to its name, which fails if the name is taken; this needs no lock. Replacing one under a
condition does, so the file system must keep `flock` between machines.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from alignment_core.artifacts.files import fsync, open_lock
from alignment_core.artifacts.remote.objects import Conflict, Stored, Unreachable, Watch

NEW, LOCK = ".new", ".lock"
CHUNK = 8 * 2**20
TRIES = 20


class FolderObjects:
    """Objects in a folder. It must exist: an empty mount point is not the remote."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder = folder
        self.address = address

    def read(self, name: str) -> tuple[bytes, str] | None:
        with self._explained():
            try:
                content = (self._folder / name).read_bytes()
            except FileNotFoundError:
                return None
            return content, _tag(content)

    def write(self, name: str, content: bytes, replacing: str | None) -> str:
        target = self._folder / name
        with self._explained(), self._new() as new:
            new.write_bytes(content)
            fsync(new)
            if replacing is None:
                try:
                    _put(lambda: os.link(new, target), target)
                except FileExistsError as error:
                    raise Conflict(name) from error
            else:
                with self._locked():
                    there = self.read(name)
                    if there is None or there[1] != replacing:
                        raise Conflict(name)
                    _put(lambda: new.replace(target), target)
        return _tag(content)

    def upload(self, name: str, path: Path, watch: Watch) -> None:
        target = self._folder / name
        with self._explained(), self._new() as new:
            with path.open("rb") as source, new.open("wb") as file:
                while chunk := source.read(CHUNK):
                    file.write(chunk)
                    watch(len(chunk))
            fsync(new)
            _put(lambda: new.replace(target), target)

    def fetch(self, name: str, path: Path | None, watch: Watch) -> str:
        digest = hashlib.sha256()
        with self._explained(), (self._folder / name).open("rb") as source, open(path or os.devnull, "wb") as file:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                file.write(chunk)
                watch(len(chunk))
        return digest.hexdigest()

    def list(self, prefix: str) -> Iterator[Stored]:
        with self._explained():
            found = []
            for folder, _, names in os.walk(self._folder / prefix):
                for name in names:
                    path = Path(folder, name)
                    with suppress(FileNotFoundError):
                        stat = path.stat()
                        found.append(Stored(path.relative_to(self._folder).as_posix(), stat.st_size, stat.st_mtime))
        yield from found

    def delete(self, names: Iterable[str]) -> None:
        with self._explained(), self._locked():
            for name in names:
                path = self._folder / name
                path.unlink(missing_ok=True)
                for parent in path.relative_to(self._folder).parents:
                    with suppress(OSError):  # it holds something else
                        (self._folder / parent).rmdir()

    def now(self) -> float:
        with self._explained(), self._new() as new:
            new.write_bytes(b"now")
            return new.stat().st_mtime

    @contextmanager
    def _new(self) -> Iterator[Path]:
        """Yield a path in the file system of the objects, and remove what is left there."""
        (self._folder / NEW).mkdir(exist_ok=True)
        new = self._folder / NEW / uuid4().hex
        try:
            yield new
        finally:
            new.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = open_lock(self._folder / LOCK)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        if not self._folder.is_dir():
            raise Unreachable(self.address, f"there is no folder {self._folder}. Mount it, or create it once")
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise Unreachable(self.address, f"{error.filename or self._folder}: {error.strerror}") from error


def _put(put: Callable[[], object], target: Path) -> None:
    """Put a file to its place, in a folder that another machine removes if it finds it empty just before that."""
    for attempt in range(TRIES):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            put()
        except FileNotFoundError:
            if attempt == TRIES - 1:
                raise
        else:
            break
    with suppress(FileNotFoundError):  # another machine has removed the object already
        fsync(target.parent)


def _tag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
