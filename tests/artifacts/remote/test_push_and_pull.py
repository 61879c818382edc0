"""Artifacts go from one machine to another through the remote, complete and verified or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from stored import A, C, D, add

from alignment_core.artifacts import Artifact, ArtifactStore, Manifest
from alignment_core.artifacts.manifest import write_manifest
from alignment_core.artifacts.remote.address import open_objects
from alignment_core.artifacts.remote.objects import Conflict, Unreachable
from alignment_core.artifacts.sharing import building, obtain, push, push_pending, required
from alignment_core.errors import ArtifactError


def make(store: ArtifactStore, key: str, told: Any, text: str = "weights") -> Artifact:
    """Build an artifact as a stage does."""
    source = ArtifactStore(store.root / "elsewhere" / text)
    manifest = add(source, key, files={"weights": text, "config": "{}"}).manifest()
    with building(store, manifest.kind, key, [], told) as place:
        if place.found is not None:
            return place.found
        (place.out / "weights").write_text(text)
        (place.out / "config").write_text("{}")
        return place.publish(manifest)


def pointer(key: str) -> str:
    return f"artifacts/{key}/published.json"


def files_of(shared: Any, key: str) -> list[str]:
    return [name for name in shared.names(f"artifacts/{key}/") if not name.endswith("published.json")]


def test_what_one_machine_builds_the_other_one_pulls(shared: Any, told: Any) -> None:
    one, other = shared.machine("one"), shared.machine("other")
    built = make(one, D, told)
    pulled = obtain(other, D, told)
    assert pulled is not None
    assert pulled.path == other.root / "optimize" / D
    assert {path.name: path.read_bytes() for path in pulled.path.iterdir()} == {
        path.name: path.read_bytes() for path in built.path.iterdir()
    }
    assert other.find(D) == pulled
    assert make(other, D, told, "not built").path == pulled.path
    assert (pulled.path / "weights").read_text() == "weights"
    assert obtain(other, A, told) is None
    assert told.warnings == []


def test_artifact_from_before_the_remote_is_pushed_when_it_is_used(shared: Any, told: Any) -> None:
    one = shared.machine("one")
    add(one, D)
    assert not required(one).holds(D)
    assert obtain(one, D, told) is not None
    assert obtain(shared.machine("other"), D, told) is not None


def test_push_by_hand_takes_the_ancestors_along(shared: Any, told: Any) -> None:
    one = shared.machine("one")
    add(one, C)
    add(one, A)
    push(one, A, told)
    assert {required(one).holds(key) for key in (A, C)} == {True}
    with pytest.raises(ArtifactError, match="neither this store nor its remote holds the artifact"):
        push(one, D, told)


@pytest.mark.parametrize("place", ["weights", "published.json"])
def test_flipped_byte_is_never_used_and_is_replaced(shared: Any, told: Any, place: str) -> None:
    make(shared.machine("one"), D, told)
    (name,) = [name for name in shared.names(f"artifacts/{D}/") if name.endswith(place)]
    shared.flip(name)
    other = shared.machine("other")
    assert obtain(other, D, told) is None
    assert other.find(D) is None
    assert [f"{D} in {shared.address} is damaged: {place}" in warning for warning in told.warnings] == [True]
    make(other, D, told, "built anew")
    third = obtain(shared.machine("third"), D, told)
    assert third is not None
    assert (third.path / "weights").read_text() == "built anew"
    assert len(told.warnings) == 1


def test_missing_file_is_never_used(shared: Any, told: Any) -> None:
    make(shared.machine("one"), D, told)
    shared.objects.delete([name for name in files_of(shared, D) if name.endswith("config")])
    assert obtain(shared.machine("other"), D, told) is None
    assert "config is missing" in told.warnings[0]


def test_file_that_leaves_the_folder_is_refused(shared: Any, told: Any, tmp_path: Path) -> None:
    fields = add(ArtifactStore(tmp_path / "elsewhere"), D).manifest().model_dump(mode="json")
    fields["files"] = {"../../../outside": fields["files"]["weights"]}
    write_manifest(tmp_path, Manifest(**fields))
    text = (tmp_path / "manifest.json").read_text()
    shared.put(pointer(D), json.dumps({"folder": "folder", "manifest": text}).encode())
    assert obtain(shared.machine("other"), D, told) is None
    assert "'../../../outside' is no name of a file" in told.warnings[0]
    assert not (tmp_path / "outside").exists()


def test_half_pushed_artifact_is_not_there_and_a_later_push_completes_it(
    shared: Any, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remote goes away between the files and `published.json`."""
    one, write = shared.machine("one"), type(shared.objects).write

    def away(self: Any, name: str, content: bytes, replacing: str | None) -> str:
        if name == pointer(D):
            raise Unreachable(self.address, "it is away")
        written: str = write(self, name, content, replacing)
        return written

    monkeypatch.setattr(type(shared.objects), "write", away)
    built = make(one, D, told)
    assert len(files_of(shared, D)) == 2
    assert obtain(shared.machine("other"), D, told) is None
    assert f"optimize/{D} is in the local store and was not pushed" in told.warnings[0]
    monkeypatch.undo()
    assert one.find(D) == built
    assert push_pending(one, told) == [D]
    assert push_pending(one, told) == []
    assert obtain(shared.machine("other"), D, told) is not None


def test_remote_that_is_away_costs_nothing_but_the_push(shared: Any, told: Any) -> None:
    one = shared.machine("one")
    shared.go_away()
    built = make(one, D, told)
    assert one.find(D) == built
    assert [f"optimize/{D} is in the local store and was not pushed" in warning for warning in told.warnings] == [True]
    with pytest.raises(Unreachable, match="Nothing in the local store is lost"):
        push_pending(one, told)
    shared.come_back()
    assert obtain(one, D, told) == built, "the next run that uses it pushes it"
    assert push_pending(one, told) == []
    assert obtain(shared.machine("other"), D, told) is not None


def test_of_two_builds_the_remote_keeps_the_first(shared: Any, told: Any) -> None:
    """Two machines build the same key, because neither reached the remote."""
    one, other = shared.machine("one"), shared.machine("other")
    shared.go_away()
    for machine, text in ((one, "of one"), (other, "of the other")):
        make(machine, D, told, text)
    shared.come_back()
    assert push_pending(one, told) == [D]
    assert push_pending(other, told) == [D]
    assert told.logs[-1] == f"the remote keeps another machine's build of optimize/{D}"
    assert len(files_of(shared, D)) == 2, "the files of the other push are removed"
    third = obtain(shared.machine("third"), D, told)
    assert third is not None
    assert (third.path / "weights").read_text() == "of one"


def test_push_that_another_machine_overtakes_removes_its_files(
    shared: Any, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = shared.machine("one"), shared.machine("other")
    theirs = add(other, D, files={"weights": "of the other"})
    upload, overtaken = type(shared.objects).upload, False

    def overtaken_meanwhile(self: Any, name: str, path: Path, watch: Any) -> None:
        nonlocal overtaken
        if not overtaken:
            overtaken = True
            required(other).push(theirs.path, told)
        upload(self, name, path, watch)

    monkeypatch.setattr(type(shared.objects), "upload", overtaken_meanwhile)
    make(one, D, told, "of one")
    assert told.logs == [f"the remote keeps another machine's build of optimize/{D}"]
    (kept,) = files_of(shared, D)
    assert shared.bytes(kept) == b"of the other"


def test_conditional_writes(shared: Any) -> None:
    objects = shared.objects
    tag = objects.write("some/object", b"first", None)
    with pytest.raises(Conflict):
        objects.write("some/object", b"second", None)
    new = objects.write("some/object", b"third", tag)
    for stale in (tag, "0" * 32):
        with pytest.raises(Conflict):
            objects.write("some/object", b"fourth", stale)
    assert objects.read("some/object") == (b"third", new)
    with pytest.raises(Conflict):
        objects.write("no/object", b"fifth", new)
    assert objects.read("no/object") is None


def test_interrupted_pull_goes_on_with_the_files_that_it_has(
    shared: Any, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(shared.machine("one"), D, told)
    other, fetch, fetched = shared.machine("other"), type(shared.objects).fetch, []

    def dies_at_weights(self: Any, name: str, path: Path | None, watch: Any) -> str:
        fetched.append(name.rpartition("/")[2])
        if fetched == ["config", "weights"]:
            raise KeyboardInterrupt
        read: str = fetch(self, name, path, watch)
        return read

    monkeypatch.setattr(type(shared.objects), "fetch", dies_at_weights)
    with pytest.raises(KeyboardInterrupt):
        obtain(other, D, told)
    assert other.find(D) is None
    assert obtain(other, D, told) is not None
    assert fetched == ["config", "weights", "weights"]


@pytest.mark.parametrize(("store", "remote"), [("one", "one"), ("one", "one/remote"), ("remote/one", "remote")])
def test_store_and_remote_that_overlap_are_refused(tmp_path: Path, store: str, remote: str) -> None:
    (tmp_path / remote).mkdir(parents=True)
    with pytest.raises(ArtifactError, match="the store and its remote overlap"):
        ArtifactStore(tmp_path / store, f"file://{tmp_path / remote}")
    ArtifactStore(tmp_path / "one-more", f"file://{tmp_path / remote}")


def test_folder_that_another_machine_removes_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the making of the folder and that of the object, and right after it."""
    (tmp_path / "remote").mkdir()
    objects = open_objects(f"file://{tmp_path / 'remote'}")
    link, times = os.link, [2]

    def removed_before(source: Any, target: Any) -> None:
        if times[0]:
            times[0] -= 1
            Path(target).parent.rmdir()
        link(source, target)
        objects.delete([f"leases/runs/{Path(target).name}"])

    monkeypatch.setattr(os, "link", removed_before)
    objects.write("leases/runs/x", b"1", None)
    assert times == [0]
    monkeypatch.undo()
    objects.write("leases/runs/x", b"1", None)
    assert objects.read("leases/runs/x") is not None
