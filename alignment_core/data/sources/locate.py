"""Resolve `source.path`: local files, folders, globs, archives, fsspec URLs and Hub data sets."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from alignment_core.config import SourceConfig
from alignment_core.config.places import HUB, expanded
from alignment_core.data.sources.source_file import (
    ARCHIVES,
    CONTAINERS,
    SourceFile,
    archive_members,
    is_archive,
)
from alignment_core.data.sources.splits import files_by_split, without_descriptions
from alignment_core.errors import DataError

MOST_MEMBERS = 2000
"""Number of files in an archive. The time to read them grows with its square."""


def first_line(error: Exception) -> str:
    """Return the first line of a client library's error, without the advice in the lines after it."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def is_hub(path: str) -> bool:
    return path.startswith(HUB)


def is_url(path: str) -> bool:
    return "://" in path and not is_hub(path)


def source_files(source: SourceConfig) -> list[SourceFile]:
    """Return the files of `files_and_other_splits`."""
    return files_and_other_splits(source)[0]


def files_and_other_splits(source: SourceConfig) -> tuple[list[SourceFile], list[str]]:
    """Return the files of a source that is not a Hub data set, sorted by name, and the splits that they leave out.

    Of a stored data set with several splits, the files are only those of `source.split`.

    Raises:
        DataError: the path does not exist, there is no file with a supported extension, or there is no such split.
    """
    files = _all_files(source)
    splits = files_by_split(files)
    if not splits:
        return without_descriptions(files) or files, []
    if source.split not in splits:
        raise DataError(
            "the data set has no such split",
            where=source.path,
            got=source.split,
            expected=f"one of {', '.join(sorted(filter(None, splits)))}",
            do="Set data.sources[].split, or set .path to the folder of one split",
        )
    read = [file for file in files if file in splits[source.split] or file in splits.get("", ())]
    return read, sorted(set(splits) - {"", source.split})


def unread_files(source: SourceConfig) -> list[str]:
    """Return the names of the files in a local folder or archive that have no reader, apart from descriptions of it."""
    path = expanded(source.path)
    if is_url(source.path) or is_hub(source.path):
        return []
    if path.is_dir():
        names = [file.relative_to(path).as_posix() for file in sorted(path.rglob("*")) if file.is_file()]
    else:
        names = (archive_members(path) or []) if path.is_file() and is_archive(path.name) else []
    shown = [name for name in names if not any(part.startswith((".", "_")) for part in name.split("/"))]
    return [
        name for name in shown
        if not _readable_name(Path(name).name, True) and Path(name).suffix != ".md" and Path(name).stem != "LICENSE"
    ]  # fmt: skip


def _all_files(source: SourceConfig) -> list[SourceFile]:
    if is_url(source.path):
        return _remote_files(source.path)
    path = expanded(source.path)
    if path.is_file():
        return _local(path, path.parent) or _nothing(source.path, f"an archive with {', '.join(CONTAINERS)} files")
    if path.is_dir():
        inside = [file for file in sorted(path.rglob("*")) if _readable_name(file.name, file.is_file())]
        files = [found for file in inside for found in _local(file, path)]
        return files or _nothing(source.path, f"a folder with {', '.join(CONTAINERS)} files")
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
        do=f"Check data.sources[].path, which is relative to {Path.cwd()}. For a Hub data set, use {HUB}owner/name",
    )


def _nothing(path: str, expected: str) -> list[SourceFile]:
    raise DataError("no readable files found", where=path, expected=expected)


def _readable_name(name: str, is_file: bool) -> bool:
    if not is_file or name.startswith((".", "_")):
        return False
    return SourceFile(name, name, local=True).container in (*CONTAINERS, *ARCHIVES)


def _local(file: Path, root: Path) -> list[SourceFile]:
    """Return the file itself, or its readable members if it is an archive."""
    name = file.relative_to(root).as_posix()
    whole = SourceFile(name, str(file), local=True)
    members = archive_members(file) if is_archive(name) else None
    if members is None:
        return [whole]  # if it is a damaged archive, opening it raises the error
    readable = [member for member in members if _readable_name(Path(member).name, True)]
    if len(readable) > MOST_MEMBERS:
        raise DataError(
            "the archive has too many files: each one is opened from the start of the archive",
            where=str(file),
            got=len(readable),
            expected=f"at most {MOST_MEMBERS}",
            do="Unpack it, and name the folder in data.sources[].path",
        )
    return [SourceFile(f"{name}/{member}", str(file), local=True, member=member) for member in readable]


def _fixed_part(pattern: Path) -> Path:
    """Return the longest leading path without a wildcard."""
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
            SourceFile(_name(url, Path(item).relative_to(root)), filesystem.unstrip_protocol(item), local=False)
            for item in paths
        ]
    except Exception as error:  # each fsspec implementation raises the errors of its client library
        raise DataError(
            "the URL cannot be read",
            where=url,
            got=first_line(error),
            do="Check the URL and the credentials, and make sure that the package for this protocol is installed",
        ) from error
    return files or _nothing(url, "a URL with at least one readable file")


def _name(url: str, path: Path) -> str:
    """Return the name of a remote file for reports. It leaves out the query of a web address, which may sign it."""
    return path.as_posix().partition("?")[0] if url.startswith(("http://", "https://")) else str(path)


def remote_stamp(file: SourceFile) -> dict[str, Any]:
    """Return what identifies the content in the remote file system: its checksum (from ETag or version) and size."""
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(file.path)
    return {"checksum": str(filesystem.checksum(path)), "size": filesystem.size(path)}
