"""The address of a remote, and how one is opened."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from alignment_core.artifacts.remote.bucket import BucketObjects
from alignment_core.artifacts.remote.folder import FolderObjects
from alignment_core.artifacts.remote.objects import Objects
from alignment_core.errors import ArtifactError


def folder_of(address: str) -> Path | None:
    """Return the folder at the address of a remote, or None if it is a bucket."""
    parts = urlsplit(address)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


@lru_cache(maxsize=8)
def open_objects(address: str) -> Objects:
    """Open the objects at an address that the settings have checked. Nothing is asked of a server yet.

    Raises:
        ArtifactError: the extra `s3` is not installed, or there are no credentials.
    """
    if (folder := folder_of(address)) is not None:
        return FolderObjects(folder, address)
    if find_spec("obstore") is None:
        raise ArtifactError(
            "the remote of the store needs a library that is not installed",
            where=address,
            do="Install it with `pip install 'alignment-flows[s3]'`",
        )
    return BucketObjects(address)
