"""One machine builds a key while the others wait, and another one goes on if it dies. No two clocks are compared."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from stored import D, add, named

from alignment_core.artifacts import Artifact, ArtifactStore
from alignment_core.artifacts.remote import lease
from alignment_core.artifacts.remote.checkpoints import pull_checkpoint, pushing
from alignment_core.artifacts.sharing import building
from alignment_core.progress import Silent, Stopped

NAME = f"leases/builds/{D}"


def build(store: ArtifactStore, during: Callable[[], None], progress: Any = Silent()) -> tuple[Artifact, bool]:  # noqa: B008
    manifest = add(ArtifactStore(store.root / "elsewhere"), D).manifest()
    with building(store, "optimize", D, [], progress) as place:
        if place.found is not None:
            return place.found, True
        during()
        (place.out / "weights").write_text(D)
        return place.publish(manifest), False


def test_other_machine_waits_and_pulls(shared: Any, told: Any) -> None:
    """The build takes longer than the patience of the one that waits, which sees the holder's beats."""
    one, other = shared.machine("one"), shared.machine("other")
    started, results = threading.Event(), []

    def slow() -> None:
        started.set()
        time.sleep(2 * lease.PATIENCE_SECONDS)

    first = threading.Thread(target=lambda: results.append(build(one, slow)))
    first.start()
    assert started.wait(60)
    artifact, found = build(other, lambda: pytest.fail("built twice"), told)
    first.join()
    assert found
    assert artifact.path.is_relative_to(other.root)
    assert [cached for _, cached in results] == [False]
    assert "is building" in told.logs[0]
    assert shared.names("leases/") == []


@pytest.mark.parametrize("skew", [-1e6, 1e6])
def test_dead_machine_is_replaced_whatever_its_clock_says(
    shared: Any, told: Any, skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = shared.machine("one")
    shared.put(NAME, json.dumps({"holder": "dead", "host": "dead-host", "beat": 7, "keys": [D]}).encode())
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + skew)
    started = time.monotonic()
    _, found = build(machine, lambda: None, told)
    assert not found
    assert time.monotonic() - started >= lease.PATIENCE_SECONDS
    assert "dead-host has been silent" in told.logs[1]
    assert shared.names("leases/") == []


def test_live_machine_is_not_replaced_whatever_the_clock_says(shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with lease.run_lease(shared.objects, ["a", "b"], Silent()):
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 1e6)
        assert lease.live_keys(shared.objects) == {"a", "b"}
        monkeypatch.setattr(lease, "LIVE_SECONDS", -1)
        assert lease.live_keys(shared.objects) == set(), "by the clock of the remote it is older than that"


def test_waiting_machine_can_be_stopped(shared: Any) -> None:
    class Stopping(Silent):
        stopping = True

    shared.put(NAME, json.dumps({"holder": "one", "host": "one", "beat": 7, "keys": [D]}).encode())
    with pytest.raises(Stopped):
        build(shared.machine("other"), lambda: pytest.fail("built"), Stopping())


def test_machine_that_was_taken_for_dead_goes_on(shared: Any, told: Any) -> None:
    """Its lease is taken over while it builds. Both builds are good."""
    machine = shared.machine("one")

    def taken_over() -> None:
        shared.put(NAME, json.dumps({"holder": "other", "host": "other", "beat": 0, "keys": [D]}).encode())
        time.sleep(5 * lease.BEAT_SECONDS)

    artifact, found = build(machine, taken_over, told)
    assert not found
    assert machine.find(D) == artifact
    assert [f"another machine has taken over the lease {NAME}" in warning for warning in told.warnings] == [True]
    assert shared.names("leases/") == [NAME], "the lease of the other machine stays"


def test_checkpoint_of_a_lost_machine_is_taken_over(shared: Any, told: Any, tmp_path: Any) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"

    def save(number: int, text: str) -> None:
        partial = mine / f".checkpoint-{number:08d}"
        partial.mkdir(parents=True)
        (partial / "tensors").write_text(text)
        partial.rename(mine / f"checkpoint-{number:08d}")

    with pushing(shared.objects, D, mine, 0.05, told):
        for number in (1, 2):
            save(number, f"step {number}")
            deadline = time.monotonic() + 60
            while len(told.logs) < number and time.monotonic() < deadline:
                time.sleep(0.02)
    assert told.logs == [f"pushed checkpoint-0000000{number} of {D[:12]}" for number in (1, 2)]
    assert len(shared.names("checkpoints/")) == 2, "the older one is removed"
    pull_checkpoint(shared.objects, D, theirs, told)
    assert (theirs / "checkpoint-00000002" / "tensors").read_text() == "step 2"
    assert "going on from checkpoint-00000002" in told.logs[-1]
    (theirs / "checkpoint-00000002").rename(theirs / "checkpoint-00000003")
    pull_checkpoint(shared.objects, D, theirs, told)
    assert [path.name for path in theirs.iterdir()] == ["checkpoint-00000003"], "this machine's own is newer"
    (damaged,) = [name for name in shared.names("checkpoints/") if name.endswith("tensors")]
    shared.flip(damaged)
    pull_checkpoint(shared.objects, D, tmp_path / "third", told)
    assert not list((tmp_path / "third").iterdir())
    assert "is damaged and is not used" in told.warnings[0]


FILES = {"tensors": {"sha256": "0", "size": 1}}


@pytest.mark.parametrize(
    "record",
    [
        b"{",
        b"\xff",
        b"[]",
        json.dumps({"name": "checkpoint-1", "files": FILES}).encode(),
        json.dumps({"name": "..", "place": f"checkpoints/{D}/1/", "files": FILES}).encode(),
        json.dumps({"name": "checkpoint-1", "place": "artifacts/", "files": FILES}).encode(),
        json.dumps({"name": "checkpoint-1", "place": f"checkpoints/{D}/1/", "files": {"../x": FILES}}).encode(),
    ],
)
def test_damaged_record_of_a_checkpoint_is_not_used_and_is_replaced(
    shared: Any, told: Any, tmp_path: Any, record: bytes
) -> None:
    shared.put(f"checkpoints/{D}/newest.json", record)
    shared.put("artifacts/other/weights", b"1")
    pull_checkpoint(shared.objects, D, tmp_path / "theirs", told)
    assert told.warnings == [f"the checkpoint of {D} in the remote is damaged and is not used"]
    assert not (tmp_path / "theirs").exists()
    (tmp_path / "mine" / "checkpoint-00000001").mkdir(parents=True)
    (tmp_path / "mine" / "checkpoint-00000001" / "tensors").write_text("step 1")
    with pushing(shared.objects, D, tmp_path / "mine", 0.05, told):
        deadline = time.monotonic() + 60
        while not told.logs and time.monotonic() < deadline:
            time.sleep(0.02)
    pull_checkpoint(shared.objects, D, tmp_path / "theirs", told)
    assert (tmp_path / "theirs" / "checkpoint-00000001" / "tensors").read_text() == "step 1"
    assert shared.names("artifacts/") == ["artifacts/other/weights"]


def test_finished_build_leaves_no_checkpoint(shared: Any) -> None:
    shared.put(f"checkpoints/{D}/newest.json", json.dumps({"name": "x", "place": "y/", "files": {}}).encode())
    shared.put(f"checkpoints/{D}/old/tensors", b"1")
    build(shared.machine("one"), lambda: None)
    assert shared.names("checkpoints/") == []


def test_failed_build_leaves_nothing_to_push(shared: Any) -> None:
    machine = shared.machine("one")

    def fails() -> None:
        assert (machine.root / ".remote" / "pending" / D).exists(), "a kill must not lose it"
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        build(machine, fails)
    assert list((machine.root / ".remote" / "pending").iterdir()) == []
    assert shared.names("leases/") == []


def test_leases_of_builds_name_what_they_read(shared: Any) -> None:
    machine, parent = shared.machine("one"), named("5", "ingest")
    with building(machine, "optimize", D, [parent], Silent()):
        assert lease.live_keys(shared.objects) == {D, parent}
