"""A real S3 server: requests that fail, kills in the middle of a push, large files, and secret credentials."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from s3_server import SECRET
from stored import D, add, named

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.catalogue import resolve
from alignment_core.artifacts.digest import hash_file
from alignment_core.artifacts.models import promote
from alignment_core.artifacts.remote import bucket
from alignment_core.artifacts.remote.address import open_objects
from alignment_core.artifacts.remote.objects import Unreachable
from alignment_core.artifacts.sharing import building, connect, obtain, push_pending, required
from alignment_core.errors import ArtifactError
from alignment_core.progress import Silent, Stopped

on_server = pytest.mark.parametrize("shared", [pytest.param("s3", marks=pytest.mark.ci)], indirect=True)


@on_server
def test_one_request_in_five_failing_is_not_noticed(shared: Any, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = shared.machine("one")
    shared.server.fail_every(5)
    keys = [named(f"{digit}a", "optimize", made=digit) for digit in range(4)]
    for key in keys:
        manifest = add(ArtifactStore(one.root / "elsewhere"), key).manifest()
        with building(one, "optimize", key, [], told) as place:
            (place.out / "weights").write_text(key)
            place.publish(manifest)
        promote(one, key, "production", by="", reason="")
    other = shared.machine("other")
    assert [change.key for change in other.aliases.history("production")] == keys
    assert all(obtain(other, key, told) is not None for key in keys)
    assert resolve(other, "production").artifact.key == keys[-1]
    assert told.warnings == []
    shared.server.fail_every(0)
    assert shared.names("leases/") == []


@on_server
def test_answers_that_break_off_are_continued(shared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer of more than a mebibyte and a half ends there. The file takes three requests."""
    monkeypatch.setattr(bucket, "TRIES", 2)
    large, counts = tmp_path / "large", list[int]()
    large.write_bytes(os.urandom(4 * 2**20))
    shared.objects.upload("large", large, lambda count: None)
    shared.server.break_off(3 * 2**19)
    digest = shared.objects.fetch("large", tmp_path / "back", counts.append)
    assert digest == hash_file(large) == hash_file(tmp_path / "back")
    assert sum(counts) == 4 * 2**20
    shared.server.break_off(100)  # less than what is kept of an answer, so it never ends
    for ask in (
        lambda: shared.objects.fetch("large", tmp_path / "never", counts.append),
        lambda: shared.bytes("large"),
    ):
        with pytest.raises(Unreachable):
            ask()
        shared.objects._away = None


@pytest.mark.parametrize(
    "endpoint", ["not an address", "127.0.0.1:9000", "http://", "ftp://host", "http://user:SECRET@ho st"]
)
def test_endpoint_that_is_no_address_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(
        ArtifactError, match="AWS_ENDPOINT_URL: the server of the remote has no valid address"
    ) as caught:
        ArtifactStore(tmp_path / "one", "s3://a-bucket/endpoint")
    assert "SECRET" not in str(caught.value)


KILLED = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.artifacts.remote.bucket import BucketObjects
    from alignment_core.artifacts.remote.connection import Pending
    from alignment_core.artifacts.sharing import push_pending
    from alignment_core.progress import Silent

    BucketObjects.write = lambda self, name, content, replacing: os.kill(os.getpid(), signal.SIGKILL)
    push_pending(ArtifactStore(Path(sys.argv[1])), Silent())
""")


@on_server
def test_process_killed_between_files_and_manifest(shared: Any, told: Any) -> None:
    one = shared.machine("one")
    add(one, D)
    (one.root / ".remote" / "pending").mkdir()
    (one.root / ".remote" / "pending" / D).touch()
    environment = {**os.environ, **shared.server.environment}
    done = subprocess.run([sys.executable, "-c", KILLED, str(one.root)], env=environment, timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert [name.rpartition("/")[2] for name in shared.names(f"artifacts/{D}/")] == ["weights"]
    assert obtain(shared.machine("other"), D, told) is None
    assert push_pending(ArtifactStore(one.root), told) == [D]
    assert obtain(shared.machine("other"), D, told) is not None
    assert told.warnings == []


@on_server
def test_large_file_goes_in_parts_and_can_be_stopped(shared: Any, tmp_path: Path) -> None:
    large, sent = tmp_path / "large", 0
    large.write_bytes(os.urandom(2 * bucket.CHUNK + 12345))

    def stop_at_the_second_part(count: int) -> None:
        nonlocal sent
        sent += count
        if sent > bucket.CHUNK:
            raise Stopped

    with pytest.raises(Stopped):
        shared.objects.upload("large", large, stop_at_the_second_part)
    assert shared.names("large") == []
    counts: list[int] = []
    shared.objects.upload("large", large, counts.append)
    assert counts == [bucket.CHUNK, bucket.CHUNK, 12345]
    shared.objects.fetch("large", tmp_path / "back", counts.append)
    assert (tmp_path / "back").read_bytes() == large.read_bytes()
    assert sum(counts) == 2 * large.stat().st_size


@on_server
def test_credentials_are_nowhere(
    shared: Any, told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = shared.machine("one")
    add(one, D)
    promote(one, D, "production", by="", reason="")
    shared.go_away()
    obtain(one, D, told)
    with pytest.raises(Unreachable) as caught:
        push_pending(one, told)
    said = [str(caught.value), caplog.text, *told.logs, *told.warnings]
    kept = [path.read_bytes().decode(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert told.warnings
    assert not [text for text in (*said, *kept) if SECRET in text or "AWSAccessKey" in text or "Signature" in text]
    shared.come_back()


@on_server
def test_missing_bucket_and_missing_credentials_are_said(shared: Any, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(Unreachable, match="NoSuchBucket"):
        connect(ArtifactStore(tmp_path / "one", "s3://no-such-bucket/prefix"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    open_objects.cache_clear()
    with pytest.raises(ArtifactError, match="no credentials for the remote of the store"):
        ArtifactStore(tmp_path / "two", shared.address)


def test_bucket_without_its_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignment_core.artifacts.remote.address.find_spec", lambda name: None)
    with pytest.raises(ArtifactError, match=r"pip install 'alignment-flows\[s3\]'"):
        ArtifactStore(tmp_path / "one", "s3://a-bucket/never-opened")


def test_progress_of_a_large_transfer_is_logged(shared: Any, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignment_core.artifacts.remote.transfer.WORTH_A_LINE", 1)
    monkeypatch.setattr("alignment_core.artifacts.remote.transfer.LOG_SECONDS", 0)
    one = shared.machine("one")
    add(one, D)
    required(one).push(one.root / "optimize" / D, told)
    line = f"pushing optimize/{D[:12]} to {shared.address}: 0"
    assert told.logs == [f"{line} MiB", f"{line} of 0 MiB"]

    class Stopping(Silent):
        stopping = True

    with pytest.raises(Stopped):
        obtain(shared.machine("other"), D, Stopping())
