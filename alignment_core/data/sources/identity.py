"""Identify a source by its content, not its location. The identity enters cache keys. Imports no torch."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment_core.artifacts.digest import file_digest
from alignment_core.config import SourceConfig
from alignment_core.config.places import HUB
from alignment_core.data.sources.locate import first_line, is_hub, remote_stamp, source_files
from alignment_core.data.sources.source_file import SourceFile
from alignment_core.errors import DataError

UNIDENTIFYING = {"path", "revision", "votes_after", "votes_before", "votes_upto"}
"""Settings that only locate or select the content. They are not part of the identity, because the content is."""
COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """The identity of a source.

    `key` is plain JSON: digests of the content and every setting that changes the records, but no location or time.
    """

    key: dict[str, Any]


def source_identity(source: SourceConfig) -> SourceIdentity:
    """Return the identity of a source's content.

    Local files are identified by their bytes, in any order. A URL is identified by the checksum from its file system,
    and a Hub data set by its commit.

    Raises:
        DataError: the source does not exist or cannot be read.
    """
    settings = source.model_dump(mode="json", exclude=UNIDENTIFYING)
    if is_hub(source.path):
        name = source.path.removeprefix(HUB)
        return SourceIdentity({"hub": name, "commit": hub_commit(source), **settings})
    files = sorted((content_digest(file), file.container + file.compression) for file in source_files(source))
    return SourceIdentity({"files": [list(file) for file in files], **settings})


def content_digest(file: SourceFile) -> str:
    """Return the SHA-256 of a local file's bytes, or of what identifies its content in a remote file system.

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
            do="Check its permissions, or remove it from data.sources",
        ) from error


def hub_commit(source: SourceConfig) -> str:
    """Return the commit of `source.revision` (default: the main branch). A full commit hash is returned unchanged.

    Raises:
        DataError: the data set or the revision does not exist, or the Hub cannot be reached.
    """
    if COMMIT.fullmatch(source.revision or ""):
        return str(source.revision)
    from huggingface_hub import HfApi

    name = source.path.removeprefix(HUB)
    try:
        commit = HfApi().dataset_info(name, revision=source.revision).sha
    except Exception as error:  # the client raises its own errors and those of its transport
        raise DataError(
            "the Hub data set cannot be resolved",
            where=source.path,
            got=first_line(error),
            expected="owner/name of a data set that you can access, and an existing revision",
            do="Check data.sources[].path, .revision and the network, or set .path to a downloaded copy",
        ) from error
    return str(commit)
