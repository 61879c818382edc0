"""Aliases are the same on every machine, and no change is lost."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from stored import A, B, C, D, add, named

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.catalogue import resolve
from alignment_core.artifacts.models import Standing, find_model, promote, rollback
from alignment_core.artifacts.remote.objects import Unreachable
from alignment_core.artifacts.remote.remote import Remote
from alignment_core.artifacts.sharing import connect, push, required
from alignment_core.errors import ArtifactError
from alignment_core.progress import Silent

E = named("e", "optimize")


def give(store: ArtifactStore, key: str, alias: str = "production") -> None:
    promote(store, key, alias, by=store.root.name, reason="a test")


def test_alias_and_its_model_reach_the_other_machine(shared: Any) -> None:
    one = shared.machine("one")
    for key in (C, A, B):
        add(one, key)
    give(one, B)
    other = shared.machine("other")
    entry = resolve(other, "production")
    assert (entry.artifact.key, entry.aliases) == (B, ("production",))
    assert {artifact.key for artifact in other.artifacts()} == {A, B, C}, "retraining asks what a model learned from"
    add(other, D)
    give(other, D)
    assert [change.key for change in shared.machine("one").aliases.history("production")] == [B, D]
    back = rollback(shared.machine("one"), "production", by="one", reason="")
    assert (back.key, back.previous) == (B, D)
    assert shared.machine("other").aliases.current("production") == back


def test_verdict_on_a_pulled_model_is_known_on_the_other_machine(shared: Any, caplog: pytest.LogCaptureFixture) -> None:
    one = shared.machine("one")
    evaluated = named("6e", "evaluate", {"policy": D})
    refusal, verdict = (named(digit, "gate", {"policy": evaluated}) for digit in ("9e", "8e"))
    for key in (D, E):
        add(one, key)
    add(one, evaluated)
    for key, day, passed in ((refusal, "2026-01-02", False), (verdict, "2026-01-03", True)):
        add(one, key, day, metrics={"passed": passed})
        push(one, key, Silent())
    give(one, D)
    give(one, E, "other")
    other = shared.machine("other")
    assert find_model(other, "production").standing is Standing.PASSED, "the newest verdict counts"
    assert find_model(other, "other").standing is Standing.UNGATED, "the verdict is on another model"
    assert {artifact.key for artifact in other.artifacts()} == {D, E}, "a verdict is read, and not pulled"
    shared.go_away()
    assert find_model(shared.machine("other"), "production").standing is Standing.UNGATED
    shared.come_back()
    assert "whether another machine's gate judged the model is not known" in caplog.text


def test_many_promoters_at_once_lose_no_change(shared: Any) -> None:
    keys = [named(f"{digit}f", "optimize", promoter=digit) for digit in range(6)]
    stores = [shared.machine(f"machine-{number}") for number in range(len(keys))]
    for store, key in zip(stores, keys, strict=True):
        add(store, key)
    start, errors = threading.Barrier(len(keys)), []

    def run(store: ArtifactStore, key: str) -> None:
        start.wait()
        try:
            give(store, key)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=each) for each in zip(stores, keys, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    history = shared.machine("last").aliases.history("production")
    assert sorted(change.key for change in history) == sorted(keys)
    assert [change.previous for change in history] == [None, *(change.key for change in history[:-1])]


def test_model_takes_the_place_only_of_the_one_it_was_compared_with(shared: Any) -> None:
    one, other = shared.machine("one"), shared.machine("other")
    for store, key in ((one, D), (other, E)):
        add(store, key)
    assert other.aliases.current("production") is None
    give(one, D)
    # The other machine's object has read the aliases before that.
    with pytest.raises(ArtifactError, match="changed by another user or run in the meantime"):
        other.aliases.promote("production", "optimize", E, by="other", reason="", in_place_of=None)
    assert other.aliases.promote("production", "optimize", E, by="other", reason="", in_place_of=D).previous == D


def test_without_the_remote_aliases_are_read_but_not_changed(shared: Any, caplog: pytest.LogCaptureFixture) -> None:
    one = shared.machine("one")
    add(one, D)
    add(one, E)
    give(one, D)
    shared.machine("other").aliases.names()
    shared.go_away()
    for name in ("one", "other"):
        store = ArtifactStore(one.root.parent / name)
        current = store.aliases.current("production")
        assert current is not None
        assert current.key == D
    assert "The aliases are those that this machine has seen last" in caplog.text
    with pytest.raises(Unreachable):
        give(ArtifactStore(one.root), E)
    shared.come_back()
    assert [change.key for change in shared.machine("one").aliases.history("production")] == [D]


def test_alias_never_points_to_what_the_remote_does_not_hold(shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pruner that has read the aliases withdraws the model while it is promoted."""
    one = shared.machine("one")
    add(one, D)
    write = Remote.write_alias

    def pruned_meanwhile(self: Remote, name: str, history: bytes, replacing: str | None) -> None:
        entry = self.look_up(D)
        assert entry is not None
        assert entry.manifest is not None, "it is pushed before the alias is written"
        self.withdraw(entry, "unneeded")
        write(self, name, history, replacing)

    monkeypatch.setattr(Remote, "write_alias", pruned_meanwhile)
    give(one, D)
    assert required(one).holds(D)


def test_store_with_aliases_of_its_own_brings_them_along(shared: Any, tmp_path: Any) -> None:
    alone = ArtifactStore(tmp_path / "one")
    add(alone, D)
    give(alone, D)
    shared.machine("one")
    assert resolve(shared.machine("other"), "production").artifact.key == D


def test_store_with_other_aliases_is_not_connected(shared: Any, tmp_path: Any) -> None:
    add(shared.machine("one"), E)
    give(shared.machine("one"), E)
    alone = ArtifactStore(tmp_path / "alone")
    add(alone, D)
    give(alone, D)
    with pytest.raises(ArtifactError, match="the alias `production` has another history in this store"):
        connect(ArtifactStore(alone.root, shared.address))
    assert ArtifactStore(alone.root).remote is None
    current = ArtifactStore(alone.root).aliases.current("production")
    assert current is not None
    assert current.key == D


def test_store_remembers_its_remote_and_takes_no_other(shared: Any, tmp_path: Any) -> None:
    shared.machine("one")
    assert required(ArtifactStore(tmp_path / "one")).address == shared.address
    with pytest.raises(ArtifactError, match="this store belongs to another remote"):
        ArtifactStore(tmp_path / "one", "file:///another/folder")
    with pytest.raises(ArtifactError, match="shares its artifacts with no remote"):
        required(ArtifactStore(tmp_path / "fresh"))


def test_remote_that_cannot_be_reached_is_not_connected(shared: Any, tmp_path: Any) -> None:
    shared.go_away()
    with pytest.raises(Unreachable):
        connect(ArtifactStore(tmp_path / "one", shared.address))
    assert not (tmp_path / "one").exists()
    shared.come_back()


def test_server_that_ignores_conditions_is_refused(shared: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def overwrites(self: Any, name: str, content: bytes, replacing: str | None) -> str:
        shared.put(name, content)
        return "tag"

    monkeypatch.setattr(type(shared.objects), "write", overwrites)
    with pytest.raises(ArtifactError, match="ignores the conditions of writes"):
        connect(ArtifactStore(tmp_path / "one", shared.address))


@pytest.mark.parametrize("content", [b'{"action"', b"\xff", b""])
def test_damage_in_the_remote_is_said_to_be_there(shared: Any, content: bytes) -> None:
    one = shared.machine("one")
    add(one, D)
    promote(one, D, "production", by="", reason="")
    shared.put("aliases/production.jsonl", content)
    for machine in (one, ArtifactStore(one.root.parent / "new", shared.address)):
        with pytest.raises(ArtifactError, match="is damaged") as caught:
            ArtifactStore(machine.root, shared.address).aliases.current("production")
        assert str(caught.value).startswith(f"{shared.address}/aliases/production.jsonl: ")
        assert "`.aliases/production.jsonl`" in str(caught.value)
    shared.put("aliases/production.jsonl", (one.root / ".aliases" / "production.jsonl").read_bytes())
    current = shared.machine("one").aliases.current("production")
    assert current is not None
    assert current.key == D
