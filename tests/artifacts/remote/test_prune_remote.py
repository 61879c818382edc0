"""Pruning a remote removes what is old and unneeded, and never what an alias or a live lease needs."""

from __future__ import annotations

from typing import Any

import pytest
from stored import A, B, C, D, add, named

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.models import promote
from alignment_core.artifacts.prune_remote import prune_remote
from alignment_core.artifacts.remote.lease import run_lease
from alignment_core.artifacts.remote.remote import Remote
from alignment_core.artifacts.sharing import obtain, push, required
from alignment_core.errors import ArtifactError, ConfigError
from alignment_core.progress import Silent

E = named("e", "optimize")
DAY = 86400.0


@pytest.fixture
def store(shared: Any) -> ArtifactStore:
    """C ← A ← B and D in the remote, all of them a day old by its clock."""
    store: ArtifactStore = shared.machine("one")
    for key in (C, A, B, D):
        add(store, key)
        push(store, key, Silent())
    return store


@pytest.fixture
def later(shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = type(shared.objects).now
    monkeypatch.setattr(type(shared.objects), "now", lambda self: now(self) + 2 * DAY)
    monkeypatch.setattr("alignment_core.artifacts.remote.lease.LIVE_SECONDS", 2 * DAY + 900)


def held(store: ArtifactStore) -> set[str]:
    return {entry.key for entry in required(store).artifacts()}


def test_nothing_young_is_removed(store: ArtifactStore) -> None:
    assert prune_remote(store, older_than_seconds=DAY) == []
    assert held(store) == {A, B, C, D}
    with pytest.raises(ConfigError, match="only old artifacts can be removed"):
        prune_remote(store, older_than_seconds=0)


@pytest.mark.usefixtures("later")
def test_what_an_alias_needs_stays_with_its_ancestors(shared: Any, store: ArtifactStore) -> None:
    promote(store, B, "production", by="", reason="")
    listed = prune_remote(store, older_than_seconds=DAY, dry_run=True)
    assert held(store) == {A, B, C, D}
    assert [(item.what, item.name.split("/")[1], item.size) for item in listed] == [("optimize", D, 32)]
    assert prune_remote(store, older_than_seconds=DAY) == listed
    assert held(store) == {A, B, C}
    assert [name for name in shared.names(f"artifacts/{D}/") if not name.endswith("published.json")] == []
    other = shared.machine("other")
    assert obtain(other, B, Silent()) is not None
    assert obtain(other, D, Silent()) is None
    push(store, D, Silent())
    assert obtain(other, D, Silent()) is not None, "what was removed can be pushed again"


@pytest.mark.usefixtures("later")
def test_verdict_on_a_promoted_model_stays(shared: Any, store: ArtifactStore) -> None:
    evaluation = named("", "evaluate", {"policy": B})
    verdict = named("", "gate", {"policy": evaluation})
    other = named("", "evaluate", {"policy": D})
    for key in (evaluation, verdict, other):
        add(store, key, metrics={"passed": True})
        push(store, key, Silent())
    promote(store, B, "production", by="", reason="")
    prune_remote(store, older_than_seconds=DAY)
    assert held(store) == {A, B, C, evaluation, verdict}


@pytest.mark.usefixtures("later")
def test_what_a_run_needs_stays(shared: Any, store: ArtifactStore) -> None:
    with run_lease(shared.objects, [A], Silent()):
        prune_remote(store, older_than_seconds=DAY)
        assert held(store) == {A, C}
    prune_remote(store, older_than_seconds=DAY)
    assert held(store) == set()


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("prefix", ["artifacts", "checkpoints"])
def test_what_a_killed_machine_left_is_removed(shared: Any, store: ArtifactStore, prefix: str) -> None:
    promote(store, B, "production", by="", reason="")
    promote(store, D, "candidate", by="", reason="")
    shared.put(f"{prefix}/{E}/half/weights", b"1234")
    shared.put(f"artifacts/{B}/half/weights", b"12345")
    with run_lease(shared.objects, [E], Silent()):
        assert {item.size for item in prune_remote(store, older_than_seconds=DAY)} == {5}
    assert [item.size for item in prune_remote(store, older_than_seconds=DAY)] == [4]
    assert held(store) == {A, B, C, D}
    assert prune_remote(store, older_than_seconds=DAY) == []


@pytest.mark.usefixtures("later")
def test_model_that_is_promoted_meanwhile_is_restored(
    shared: Any, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(store, B, "production", by="", reason="")
    withdraw = Remote.withdraw

    def promoted_first(self: Remote, entry: Any, reason: str) -> str | None:
        if entry.key == D:
            # As on another machine, which has looked the artifact up before it is withdrawn.
            shared.machine("other").aliases.promote("candidate", "optimize", D, by="", reason="")
        return withdraw(self, entry, reason)

    obtain(shared.machine("other"), D, Silent())
    monkeypatch.setattr(Remote, "withdraw", promoted_first)
    assert prune_remote(store, older_than_seconds=DAY) == []
    assert obtain(shared.machine("third"), D, Silent()) is not None


@pytest.mark.usefixtures("later")
def test_unreadable_lineage_stops_pruning(shared: Any, store: ArtifactStore) -> None:
    promote(store, B, "production", by="", reason="")
    shared.put(f"artifacts/{A}/published.json", b"{")
    with pytest.raises(ArtifactError, match="nothing was removed: a needed artifact is damaged"):
        prune_remote(store, older_than_seconds=DAY)
    assert required(store).holds(D)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("content", [b"{", b"[]", b'{"keys": 3}', b"\xff"])
def test_damaged_lease_stops_pruning(shared: Any, store: ArtifactStore, content: bytes) -> None:
    shared.put("leases/runs/someone", content)
    with pytest.raises(ArtifactError, match="leases/runs/someone: nothing was removed: this lease cannot be read"):
        prune_remote(store, older_than_seconds=DAY)
    assert held(store) == {A, B, C, D}


def test_remote_that_is_away_is_not_pruned(shared: Any, store: ArtifactStore) -> None:
    shared.go_away()
    with pytest.raises(ArtifactError):
        prune_remote(store, older_than_seconds=DAY)
    shared.come_back()
    assert held(store) == {A, B, C, D}
