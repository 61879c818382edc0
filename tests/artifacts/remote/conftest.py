"""A remote that two machines share: a folder, and in the tier `ci` a bucket of a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import BUCKET, S3Server, s3_server

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.remote import bucket, lease
from alignment_core.artifacts.remote.address import open_objects
from alignment_core.artifacts.remote.objects import Objects
from alignment_core.artifacts.sharing import connect
from alignment_core.progress import Silent


class Told(Silent):
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.logs: list[str] = []
        self.warnings: list[str] = []

    def log(self, message: str) -> None:
        self.logs.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


class Shared:
    """A remote, and the machines that share it. Each has a store in a folder of its own."""

    def __init__(self, folder: Path, server: S3Server | None) -> None:
        self._folder, self.server = folder, server
        self._place = folder / "remote"
        self._place.mkdir()
        self.address = f"s3://{BUCKET}/{folder.name}" if server else f"file://{self._place}"

    @property
    def objects(self) -> Objects:
        return open_objects(self.address)

    def machine(self, name: str) -> ArtifactStore:
        """Open the store of a machine anew, as each command does."""
        store = ArtifactStore(self._folder / name, self.address)
        store.root.mkdir(exist_ok=True)
        connect(store)
        return store

    def go_away(self) -> None:
        if self.server:
            self.server.fail_every(1)
        else:
            self._place.rename(self._folder / "away")

    def come_back(self) -> None:
        if self.server:
            self.server.fail_every(0)
            self.objects._away = None  # type: ignore[attr-defined]
        else:
            (self._folder / "away").rename(self._place)

    def flip(self, name: str) -> None:
        """Change the last byte of an object."""
        content = bytearray(self.bytes(name))
        content[-1] ^= 1
        self.put(name, bytes(content))

    def bytes(self, name: str) -> bytes:
        found = self.objects.read(name)
        assert found is not None, name
        return found[0]

    def put(self, name: str, content: bytes) -> None:
        path = self._folder / "content"
        path.write_bytes(content)
        self.objects.upload(name, path, lambda count: None)

    def names(self, prefix: str = "") -> list[str]:
        return sorted(stored.name for stored in self.objects.list(prefix) if not stored.name.startswith((".", "clock")))


@pytest.fixture(scope="session")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.ci)])
def shared(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shared]:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 0.5 if request.param == "folder" else 3.0)
    if request.param == "folder":
        yield Shared(tmp_path, None)
        return
    monkeypatch.setattr(bucket, "TRIES", 4)
    monkeypatch.setattr(bucket, "RETRY_SECONDS", 3)
    running: S3Server = request.getfixturevalue("server")
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    open_objects.cache_clear()
    yield Shared(tmp_path, running)
    running.fail_every(0)
    running.break_off(0)
    open_objects.cache_clear()


@pytest.fixture
def told() -> Told:
    return Told()
