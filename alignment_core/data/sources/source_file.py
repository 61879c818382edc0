"""One file of a source, which may be inside a zip or tar archive."""

from __future__ import annotations

import io
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

CONTAINERS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".feather")
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz")
"""Endings of archives. A `.tar` may also be compressed as `.gz`, `.bz2` or `.xz`."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source.

    Attributes:
        name: name in reports. It is relative to the source's folder, so it does not depend on the folder's location.
        path: local path or fsspec URL.
        local: whether the file is in a local file system.
        member: name inside the archive at `path`. Empty if the file is not in an archive.
    """

    name: str
    path: str
    local: bool
    member: str = ""

    @property
    def container(self) -> str:
        """Return the extension that selects the reader, without the extension of the compression."""
        name = self.name.lower()
        for ending in COMPRESSIONS:
            name = name.removesuffix(ending)
        return Path(name).suffix

    @property
    def compression(self) -> str:
        return next((ending for ending in COMPRESSIONS if self.name.lower().endswith(ending)), "")

    def open(self) -> IO[bytes]:
        """Open the file as raw bytes, still compressed."""
        if self.local and (self.member or is_archive(self.name)):
            return _open_member(Path(self.path), self.member)
        if self.local:
            return open(self.path, "rb")
        import fsspec

        stream: IO[bytes] = fsspec.open(self.path, "rb").open()
        return stream


def is_archive(name: str) -> bool:
    return SourceFile(name, name, local=True).container in ARCHIVES


def archive_members(path: Path) -> list[str] | None:
    """Return the names of the files in an archive, sorted, or None if it cannot be read."""
    try:
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                return sorted(member.filename for member in archive.infolist() if not member.is_dir())
        with tarfile.open(path) as tar:
            return sorted({member.name for member in tar if member.isfile()})
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError):
        return None


def _open_member(path: Path, member: str) -> IO[bytes]:
    """Open a file in an archive. Without a name, this raises the error of the damaged archive."""
    if path.suffix.lower() == ".zip":
        return zipfile.ZipFile(path).open(member)  # the member keeps the archive's file open
    archive = tarfile.open(path)  # noqa: SIM115 - closed with the member
    stream = archive.extractfile(member)
    if stream is None:
        raise OSError(f"{member} is not a file")
    return _TarMember(archive, stream)


class _TarMember(io.BufferedReader):
    """A file in a tar archive, which is closed with it."""

    def __init__(self, archive: tarfile.TarFile, stream: Any) -> None:
        super().__init__(stream)
        self._archive = archive

    def close(self) -> None:
        super().close()
        self._archive.close()
