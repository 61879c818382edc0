"""Artifacts in a remote.

    artifacts/<key>/<random>/<file>     the files of an artifact
    artifacts/<key>/published.json      the text of its manifest and the name of that folder, written last; or a note
                                        that the artifact was withdrawn
    aliases/<name>.jsonl                the history of an alias
    leases/                             see `lease.py`
    checkpoints/                        see `checkpoints.py`

Each push has a folder of its own, so that no other push and no pruner touches it. The first one that writes
`published.json` wins, and the others remove their files. An artifact is withdrawn, because it is damaged or unneeded,
by a note in place of `published.json`, which a later push replaces.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from uuid import uuid4

from alignment_core.artifacts.digest import hash_file
from alignment_core.artifacts.manifest import MANIFEST, Manifest, parse_manifest, with_ancestors
from alignment_core.artifacts.remote.objects import Conflict, Objects
from alignment_core.artifacts.remote.transfer import Transfer
from alignment_core.errors import ArtifactError
from alignment_core.progress import Progress, Silent

ARTIFACTS, ALIASES = "artifacts/", "aliases/"
PUBLISHED = "published.json"
WITHDRAWN = "withdrawn"
READERS = 16


@dataclass(frozen=True)
class Published:
    """What the remote holds of one key.

    Attributes:
        key: the key.
        tag: tag of its `published.json`.
        folder: prefix of the names of its files; empty without a manifest.
        text: text of the manifest; empty without one.
        manifest: the manifest, None if the artifact was withdrawn or `published.json` is damaged.
        withdrawn: whether it was withdrawn.
        fault: why there is no manifest, else None.
    """

    key: str
    tag: str
    folder: str = ""
    text: str = ""
    manifest: Manifest | None = None
    withdrawn: bool = False
    fault: str | None = None

    @property
    def size(self) -> int:
        """Total size of its files in bytes."""
        return 0 if self.manifest is None else sum(record.size for record in self.manifest.files.values())


class Remote:
    """The artifacts and aliases in a remote."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    @property
    def address(self) -> str:
        return self.objects.address

    def look_up(self, key: str) -> Published | None:
        """Return what the remote holds of a key, unverified except for its manifest; None if nothing."""
        found = self.objects.read(_pointer(key))
        if found is None:
            return None
        content, tag = found
        try:
            fields = json.loads(content)
            if WITHDRAWN in fields:
                return Published(key, tag, withdrawn=True, fault=str(fields[WITHDRAWN]))
            folder, text = str(fields["folder"]), str(fields["manifest"])
            manifest = parse_manifest(text.encode())
            _check(manifest, key, folder)
        except (ValueError, TypeError, KeyError) as error:
            return Published(key, tag, fault=f"{PUBLISHED} is damaged: {str(error).partition(chr(10))[0]}")
        return Published(key, tag, f"{ARTIFACTS}{key}/{folder}/", text, manifest)

    def holds(self, key: str) -> bool:
        """Return whether the remote has this artifact and did not withdraw it."""
        found = self.look_up(key)
        return found is not None and found.manifest is not None

    def artifacts(self) -> list[Published]:
        """Return every artifact that was not withdrawn, newest first. Those with a damaged manifest come last."""
        keys = {name.split("/")[1] for name in self._names(ARTIFACTS) if PurePosixPath(name).match(f"*/*/{PUBLISHED}")}
        with ThreadPoolExecutor(READERS) as readers:
            found = [entry for entry in readers.map(self.look_up, sorted(keys)) if entry is not None]
        there = [entry for entry in found if not entry.withdrawn]
        return sorted(there, key=lambda entry: (entry.manifest.created if entry.manifest else "", entry.key))[::-1]

    def push(self, folder: Path, progress: Progress) -> bool:
        """Push the artifact in a folder: its files first, then its manifest.

        Returns:
            Whether the remote now has this artifact. False: it has another machine's build of the same key, and keeps
            it.

        Raises:
            Unreachable: the remote cannot be used.
            ArtifactError: the artifact in the folder is damaged.
        """
        try:
            content = (folder / MANIFEST).read_bytes()
            manifest = parse_manifest(content)
        except (OSError, ValueError) as error:
            raise _damaged(folder, f"{MANIFEST} cannot be read: {str(error).partition(chr(10))[0]}") from error
        folder_name = uuid4().hex
        place, uploaded = f"{ARTIFACTS}{manifest.key}/{folder_name}/", False
        record = _record(folder_name, content.decode())
        while True:
            there = self.look_up(manifest.key)
            if there is not None and there.manifest is not None:
                if uploaded:
                    self.objects.delete(list(self._names(place)))
                return there.manifest.digest == manifest.digest
            if not uploaded:
                self._upload(folder, manifest, place, progress)
                uploaded = True
            try:
                self.objects.write(_pointer(manifest.key), record, None if there is None else there.tag)
            except Conflict:
                continue
            return True

    def _upload(self, folder: Path, manifest: Manifest, place: str, progress: Progress) -> None:
        total = sum(record.size for record in manifest.files.values())
        watch = Transfer(f"pushing {manifest.kind}/{manifest.key[:12]} to {self.address}", total, progress)
        for name, record in manifest.files.items():
            try:
                intact = hash_file(folder / name) == record.sha256
            except OSError as error:
                raise _damaged(folder, f"{name} cannot be read: {error.strerror}") from error
            if not intact:
                raise _damaged(folder, f"{name} does not match {MANIFEST}")
            self.objects.upload(place + name, folder / name, watch)

    def pull(self, entry: Published, folder: Path, progress: Progress) -> str | None:
        """Download an artifact into a folder, and verify every file.

        Files that an interrupted pull has left there are used if they match.

        Returns:
            What is wrong with it, None if every file matches its manifest.
        """
        manifest = entry.manifest
        if manifest is None:
            return entry.fault
        watch = Transfer(f"pulling {manifest.kind}/{entry.key[:12]} from {self.address}", entry.size, progress)
        for name, record in manifest.files.items():
            path = folder / name
            if path.is_file() and path.stat().st_size == record.size and hash_file(path) == record.sha256:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if (fault := self._fetch(entry.folder, name, record.sha256, path, watch)) is not None:
                return fault
        (folder / MANIFEST).write_text(entry.text, encoding="utf-8")
        return None

    def fault(self, entry: Published, progress: Progress | None = None) -> str | None:
        """Read every file of an artifact, and return what is wrong with it or None."""
        if entry.manifest is None:
            return entry.fault
        watch = Transfer(f"verifying {entry.key[:12]}", entry.size, progress or Silent())
        for name, record in entry.manifest.files.items():
            if (fault := self._fetch(entry.folder, name, record.sha256, None, watch)) is not None:
                return fault
        return None

    def _fetch(self, folder: str, name: str, sha256: str, path: Path | None, watch: Transfer) -> str | None:
        # Twice, so that an error of the network is not taken for damage of the object.
        for _ in range(2):
            try:
                if self.objects.fetch(folder + name, path, watch) == sha256:
                    return None
            except FileNotFoundError:
                return f"{name} is missing"
        return f"{name} does not match {MANIFEST}"

    def withdraw(self, entry: Published, reason: str) -> str | None:
        """Replace the manifest by a note, so that the artifact counts as missing. Its files stay.

        Returns:
            The tag of the note, None if the manifest was changed meanwhile.
        """
        note = json.dumps({WITHDRAWN: reason, "tag": entry.tag}).encode()
        try:
            return self.objects.write(_pointer(entry.key), note, entry.tag)
        except Conflict:
            return None

    def restore(self, entry: Published, tag: str) -> None:
        """Take back `withdraw`, unless somebody has pushed the artifact meanwhile.

        Args:
            entry: the artifact as it was.
            tag: tag of the note.
        """
        with suppress(Conflict):
            self.objects.write(_pointer(entry.key), _record(entry.folder.split("/")[2], entry.text), tag)

    def alias_histories(self) -> dict[str, tuple[bytes, str]]:
        """Return the history of every alias and its tag, by name."""
        found = {}
        for name in self._names(ALIASES):
            if (read := self.objects.read(name)) is not None:
                found[PurePosixPath(name).stem] = read
        return found

    def write_alias(self, name: str, history: bytes, replacing: str | None) -> None:
        """Write the history of an alias.

        Raises:
            Conflict: another machine changed it meanwhile.
        """
        self.objects.write(f"{ALIASES}{name}.jsonl", history, replacing)

    def lineage(self, keys: Iterable[str]) -> dict[str, Published | None]:
        """Return what the remote holds of these keys and of all their ancestors."""
        return with_ancestors(keys, self.look_up, lambda entry: entry.manifest)

    def _names(self, prefix: str) -> Iterator[str]:
        return (stored.name for stored in self.objects.list(prefix))


def _pointer(key: str) -> str:
    return f"{ARTIFACTS}{key}/{PUBLISHED}"


def _record(folder: str, text: str) -> bytes:
    return json.dumps({"folder": folder, "manifest": text}).encode()


def _damaged(folder: Path, fault: str) -> ArtifactError:
    return ArtifactError(
        f"the artifact is damaged and was not pushed: {fault}",
        where=str(folder),
        do="Run its pipeline again to rebuild it",
    )


def _check(manifest: Manifest, key: str, folder: str) -> None:
    """Check that a manifest is that of the key, and that no folder would be written outside the store."""
    if manifest.key != key:
        raise ValueError(f"it belongs to {manifest.kind}/{manifest.key}")
    for name in (folder, manifest.kind):
        if "/" in name or name.startswith(".") or not name:
            raise ValueError(f"{name!r} is no name of a folder")
