"""The lock of a key keeps all others out, although its file goes with its holder. Nothing is left of killed ones."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from stored import A, B, D, add

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.key_lock import KeyLock
from alignment_core.artifacts.prune import prune

HOLD = """
    import sys
    from pathlib import Path
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.progress import Silent
    store = ArtifactStore(Path(sys.argv[1]))
    with store.leases.held([sys.argv[2]]), store.building("sft", sys.argv[2], Silent()):
        print("building", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def kill_builder(store: ArtifactStore, key: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(store.root), key]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        process.kill()


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_who_waits_never_shares_the_lock_with_who_comes_later(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder, waiting = KeyLock(path), KeyLock(path)
    assert holder.take()
    assert not waiting.take()
    holder.close()  # removes the file that `waiting` has open
    later = KeyLock(path)
    assert later.take()
    assert not waiting.take()
    later.close()
    assert waiting.take()
    waiting.close()
    assert files(tmp_path) == set()


def test_who_never_had_the_lock_leaves_its_file(tmp_path: Path) -> None:
    holder, other = KeyLock(tmp_path / "lock"), KeyLock(tmp_path / "lock")
    assert holder.take()
    other.close()
    third = KeyLock(tmp_path / "lock")
    assert not third.take()
    third.close()
    holder.close()


def test_a_build_leaves_no_lock(store: ArtifactStore) -> None:
    add(store, A)
    assert files(store.root / ".locks") == set()


def test_lock_and_lease_of_a_killed_builder_are_removed(store: ArtifactStore) -> None:
    for key in (A, B):
        kill_builder(store, key)
    assert len(files(store.root / ".leases")) == 2, "that of the first goes with the second"
    assert files(store.root / ".locks") == {A, B}
    add(store, A)
    assert files(store.root / ".locks") == {B}
    with store.leases.held([A]):
        assert len(files(store.root / ".leases")) == 2
        assert [item.name for item in prune(store)] == [f".building/{B}"]
    assert files(store.root / ".leases") == {".gate"}


def test_pruning_removes_the_locks_of_keys_that_nothing_is_left_of(store: ArtifactStore) -> None:
    add(store, A)
    (store.root / ".locks" / B).touch()
    (store.root / ".locks" / "notes").touch()
    with store.lock(D) as held:
        assert held.take()
        prune(store, dry_run=True)
        assert files(store.root / ".locks") == {B, D, "notes"}
        prune(store)
        assert files(store.root / ".locks") == {D, "notes"}


def test_a_lease_that_is_being_written_is_kept(store: ArtifactStore) -> None:
    """It is not locked yet, so it looks like that of a killed process. Its writer shares the gate."""
    new = store.root / ".leases" / "new"
    with store.leases.held([A]), store.leases._gate(1):  # LOCK_SH
        new.write_text("[]")
        with store.leases.held([B]):
            assert new.exists()
    with store.leases.held([B]):
        assert not new.exists()
