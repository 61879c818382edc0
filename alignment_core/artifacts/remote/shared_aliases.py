"""The aliases in a remote. An alias never points to an artifact that the remote does not hold."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from alignment_core.artifacts.layout import OWN
from alignment_core.artifacts.manifest import MANIFEST, read_manifest
from alignment_core.artifacts.remote.objects import Conflict, Unreachable
from alignment_core.artifacts.remote.remote import ALIASES, Remote
from alignment_core.errors import ArtifactError
from alignment_core.progress import Progress, Silent

logger = logging.getLogger(__name__)


class SharedAliases:
    """The histories of the aliases in the remote of the store in `root`."""

    def __init__(self, root: Path, remote: Remote) -> None:
        self._root, self._remote = root, remote

    def place(self, name: str) -> str:
        return f"{self._remote.address}/{ALIASES}{name}.jsonl"

    def read(self) -> dict[str, bytes] | None:
        try:
            return {name: content for name, (content, _) in self._remote.alias_histories().items()}
        except Unreachable as error:
            logger.warning("The aliases are those that this machine has seen last: %s", error)
            return None

    def read_one(self, name: str) -> tuple[bytes, str] | None:
        return self._remote.objects.read(f"{ALIASES}{name}.jsonl")

    def replace(self, name: str, key: str, history: bytes, tag: str | None) -> bool:
        push_lineage(self._root, self._remote, key, Silent())
        try:
            self._remote.write_alias(name, history, tag)
        except Conflict:
            return False
        # A pruner that did not see the alias yet may have withdrawn the artifact meanwhile.
        push_lineage(self._root, self._remote, key, Silent())
        return True


def push_lineage(root: Path, remote: Remote, key: str, progress: Progress) -> None:
    """Push an artifact and those ancestors that are in the local store, as far as the remote does not hold them.

    Raises:
        ArtifactError: neither of them holds the artifact itself, or the remote cannot be used.
    """
    open_keys, seen = [key], set[str]()
    while open_keys:
        each = open_keys.pop()
        seen.add(each)
        folder = local_folder(root, each)
        if not remote.holds(each):
            if folder is None and each == key:
                raise ArtifactError(
                    "neither this store nor its remote holds the artifact",
                    where=str(root),
                    got=key,
                    do="Run its pipeline again to rebuild it",
                )
            if folder is not None:
                remote.push(folder, progress)
        if folder is not None:
            open_keys += set(read_manifest(folder).parents.values()) - seen


def local_folder(root: Path, key: str) -> Path | None:
    """Return the folder of an artifact in a local store, or None."""
    return next(_folders(root, key), None)


def _folders(root: Path, key: str) -> Iterator[Path]:
    for kind in root.iterdir() if root.is_dir() else ():
        if not kind.name.startswith(".") and kind.name not in OWN and (kind / key / MANIFEST).is_file():
            yield kind / key
