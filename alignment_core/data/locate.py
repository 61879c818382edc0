"""From `source.path` to the files behind it: local files, folders, globs, zip archives, fsspec URLs, hub data sets."""

from __future__ import annotations

import glob
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from alignment_core.config import SourceConfig
from alignment_core.errors import DataError

HUB = "hf://"
CONTAINERS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".feather")
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
ARCHIVE = ".zip"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source.

    Attributes:
        name: how reports call it: relative to the source's folder, without the place it lies at.
        path: local path or fsspec URL.
        local: whether it lies in a local file system.
        member: its name in the zip archive at `path`; empty for a file of its own.
    """

    name: str
    path: str
    local: bool
    member: str = ""

    @property
    def container(self) -> str:
        """The extension that says how to read it, without that of its compression."""
        name = self.name.lower()
        for ending in COMPRESSIONS:
            name = name.removesuffix(ending)
        return Path(name).suffix

    @property
    def compression(self) -> str:
        return next((ending for ending in COMPRESSIONS if self.name.lower().endswith(ending)), "")

    def open(self) -> IO[bytes]:
        """The raw bytes, still compressed."""
        if self.container == ARCHIVE and self.local and not self.member:
            zipfile.ZipFile(self.path).close()  # says what is wrong with it: a good one would have been taken apart
        if self.member:
            return zipfile.ZipFile(self.path).open(self.member)  # which keeps the archive's own file open
        if self.local:
            return open(self.path, "rb")
        import fsspec

        stream: IO[bytes] = fsspec.open(self.path, "rb").open()
        return stream


def brief(error: Exception) -> str:
    """A client library's error without the advice that it adds in further lines."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def is_hub(path: str) -> bool:
    return path.startswith(HUB)


def is_url(path: str) -> bool:
    return "://" in path and not is_hub(path)


def source_files(source: SourceConfig) -> list[SourceFile]:
    """The files of a source that is not a hub data set, sorted by name.

    Raises:
        DataError: nothing is there, or nothing there is a file that we can read.
    """
    if is_url(source.path):
        return _remote_files(source.path)
    path = Path(source.path).expanduser()
    if path.is_file():
        return _local(path, path.parent) or _nothing(
            source.path, f"an archive with {', '.join(CONTAINERS)} files in it"
        )
    if path.is_dir():
        inside = [file for file in sorted(path.rglob("*")) if _readable_name(file.name, file.is_file())]
        files = [found for file in inside for found in _local(file, path)]
        return files or _nothing(source.path, f"a folder with {', '.join(CONTAINERS)} files in it")
    root = _fixed_part(path)
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    files = [found for match in matches if match.is_file() for found in _local(match, root)]
    if files:
        return files
    if glob.has_magic(str(path)):
        return _nothing(source.path, "a pattern that matches at least one file")
    raise DataError(
        "there is no such file or folder",
        where=source.path,
        do=f"Check data.sources[].path, relative to {Path.cwd()}; a hub data set is {HUB}owner/name",
    )


def _nothing(path: str, expected: str) -> list[SourceFile]:
    raise DataError("there is nothing to read", where=path, expected=expected)


def _readable_name(name: str, is_file: bool) -> bool:
    if not is_file or name.startswith((".", "_")):
        return False
    return SourceFile(name, name, local=True).container in (*CONTAINERS, ARCHIVE)


def _local(file: Path, root: Path) -> list[SourceFile]:
    """The file itself, or the readable files in it if it is a zip archive."""
    name = file.relative_to(root).as_posix()
    if not name.lower().endswith(ARCHIVE):
        return [SourceFile(name, str(file), local=True)]
    try:
        with zipfile.ZipFile(file) as archive:
            members = sorted(member.filename for member in archive.infolist() if not member.is_dir())
    except (zipfile.BadZipFile, OSError):
        return [SourceFile(name, str(file), local=True)]  # opening it will say why, as for any damaged file
    readable = [member for member in members if _readable_name(Path(member).name, True)]
    return [SourceFile(f"{name}/{member}", str(file), local=True, member=member) for member in readable]


def _fixed_part(pattern: Path) -> Path:
    """The longest leading folder without a wildcard."""
    fixed = list(pattern.parts)
    for index, part in enumerate(pattern.parts):
        if glob.has_magic(part):
            fixed = fixed[:index]
            break
    else:
        fixed = fixed[:-1]
    return Path(*fixed) if fixed else Path()


def _remote_files(url: str) -> list[SourceFile]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        if glob.has_magic(path):
            paths = sorted(filesystem.glob(path))
        elif filesystem.isdir(path):
            paths = sorted(item for item in filesystem.find(path) if _readable_name(Path(item).name, True))
        else:
            paths = [path] if filesystem.exists(path) else []
        root = Path(path) if filesystem.isdir(path) else _fixed_part(Path(path))
        files = [
            SourceFile(str(Path(item).relative_to(root)), filesystem.unstrip_protocol(item), local=False)
            for item in paths
        ]
    except Exception as error:  # fsspec's implementations raise whatever their client library does
        raise DataError(
            "the URL cannot be read",
            where=url,
            got=brief(error),
            do="Check the address, the credentials and that the package for this protocol is installed",
        ) from error
    return files or _nothing(url, "an address with at least one readable file")


def remote_stamp(file: SourceFile) -> dict[str, Any]:
    """What the remote file system says identifies the content: its checksum or ETag, size and version."""
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(file.path)
    return {"checksum": str(filesystem.checksum(path)), "size": filesystem.size(path)}
