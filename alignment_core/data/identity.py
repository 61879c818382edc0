"""What a source *is*, wherever it lies: the part of a cache key that stands for its records. Imports no torch."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment_core.artifacts.digest import file_digest
from alignment_core.config import SourceConfig
from alignment_core.data.locate import HUB, SourceFile, brief, is_hub, remote_stamp, source_files
from alignment_core.errors import DataError

UNIDENTIFYING = {"path", "revision", "votes_after", "votes_before", "votes_upto"}
"""Settings of a source that say where its content lies; the content itself identifies it."""
COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """`key` is plain JSON: digests of the content and every setting that changes the records, but no place or time."""

    key: dict[str, Any]


def source_identity(source: SourceConfig) -> SourceIdentity:
    """Identify a source's content.

    Local files by their bytes in any order, a URL by the checksum that its file system gives, a hub data set by its
    commit.

    Raises:
        DataError: the source is not there or cannot be read.
    """
    settings = source.model_dump(mode="json", exclude=UNIDENTIFYING)
    if is_hub(source.path):
        name = source.path.removeprefix(HUB)
        return SourceIdentity({"hub": name, "commit": hub_commit(source), **settings})
    files = sorted((content_digest(file), file.container + file.compression) for file in source_files(source))
    return SourceIdentity({"files": [list(file) for file in files], **settings})


def content_digest(file: SourceFile) -> str:
    """SHA-256 of a local file's bytes, or of what a remote file system says identifies its content.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        if file.member:
            return hashlib.sha256(f"{file_digest(Path(file.path))}/{file.member}".encode()).hexdigest()
        if file.local:
            return file_digest(Path(file.path))
        return hashlib.sha256(repr(sorted(remote_stamp(file).items())).encode()).hexdigest()
    except OSError as error:
        raise DataError(
            f"the file cannot be read ({error.strerror or error})",
            where=file.path,
            do="Check its permissions, or leave it out of data.sources",
        ) from error


def hub_commit(source: SourceConfig) -> str:
    """The commit that `source.revision` (default: the main branch) points at; a whole commit is taken as it is.

    Raises:
        DataError: there is no such data set or revision, or the hub cannot be reached.
    """
    if COMMIT.fullmatch(source.revision or ""):
        return str(source.revision)
    from huggingface_hub import HfApi

    name = source.path.removeprefix(HUB)
    try:
        commit = HfApi().dataset_info(name, revision=source.revision).sha
    except Exception as error:  # the client raises its own and its transport's errors alike
        raise DataError(
            "the hub data set cannot be resolved",
            where=source.path,
            got=brief(error),
            expected="owner/name of a data set that you may read, and a revision that exists",
            do="Check data.sources[].path and .revision and the network, or download it and name the folder",
        ) from error
    return str(commit)
