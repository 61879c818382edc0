"""Stages of two machines that share a remote: built on one, pulled by the other, pushed later if the remote is away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.models import promote
from alignment_core.artifacts.sharing import required
from alignment_core.config_file import load_config
from alignment_core.errors import ArtifactError
from alignment_core.execution.build import build, hold_leases
from alignment_core.execution.stage import StageCall
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_flows import api

Call = Callable[..., StageCall]


class Listener(Silent):
    """Progress that keeps its warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    folder = tmp_path / "remote"
    folder.mkdir()
    return folder


def on(call: StageCall, machine: str) -> StageCall:
    """Return the call as it is made on a machine."""
    place = call.runtime.store.parent
    shared = {"store": place / machine, "remote": f"file://{place / 'remote'}"}
    return call.model_copy(update={"runtime": call.runtime.model_copy(update=shared)})


@pytest.mark.parametrize("isolation", ["inline", pytest.param("process", marks=pytest.mark.ci)])
def test_stage_is_built_on_one_machine_only(probe: Call, remote: Path, isolation: str) -> None:
    parent = probe("write", isolation)
    child = probe("write", isolation, parents={"data": parent.key})
    with hold_leases([on(parent, "one"), on(child, "one")]):
        assert [build(on(call, "one"), Silent()).cached for call in (parent, child)] == [False, False]
        assert len(list((remote / "leases" / "runs").iterdir())) == 1
    with hold_leases([on(child, "other")]):
        pulled = build(on(child, "other"), Silent())
    assert pulled.cached
    assert pulled.artifact.path.is_relative_to(remote.parent / "other")
    assert (pulled.artifact.path / "data.txt").read_text() == "write"
    third = probe("write", isolation, parents={"data": parent.key}, number=3)
    assert not build(on(third, "other"), Silent()).cached, "its parent is pulled for it"
    assert not (remote / "leases").exists()


def test_remote_that_goes_away_does_not_stop_a_run(probe: Call, remote: Path) -> None:
    first, second, told = on(probe("write", "inline"), "one"), on(probe("write", "inline", number=2), "one"), Listener()
    with hold_leases([first, second]):
        build(first, told)
        remote.rename(remote.parent / "away")
        built = build(second, told)
    assert [words in " ".join(told.warnings) for words in ("was not looked up", "was not pushed")] == [True, True]
    assert built.metrics["warnings"] == [], "what the remote does is not part of the artifact"
    (remote.parent / "away").rename(remote)
    store = ArtifactStore(first.runtime.store)
    assert [required(store).holds(call.key) for call in (first, second)] == [True, False]
    assert build(second, told).cached
    assert required(store).holds(second.key)


def test_run_does_not_start_with_a_remote_that_was_never_there(probe: Call, remote: Path) -> None:
    remote.rmdir()
    call = on(probe("write", "inline"), "one")
    with pytest.raises(ArtifactError, match="Mount it, or create it once"), hold_leases([call]):
        pytest.fail("it started")


@pytest.mark.ci
def test_second_machine_trains_nothing(write: Callable[..., Path], remote: Path) -> None:
    """A complete run. The second machine pulls every stage, and the model in production with what it was built from."""
    path, changes = write(), ["isolation=inline", f"remote=file://{remote}"]
    settings = load_config(path, changes)
    calls = plan_pipeline(settings, load_registry()).calls()
    with hold_leases(calls.values()):
        built = {name: build(call, Silent()) for name, call in calls.items()}
    assert not any(each.cached for each in built.values())

    elsewhere = load_config(path, [*changes, f"store={remote.parent / 'other'}"])
    planned = api.plan(elsewhere)
    assert planned.to_build == []
    files = {name: each.artifact.manifest().files.values() for name, each in built.items()}
    assert planned.pulled == {name: sum(record.size for record in records) for name, records in files.items()}
    with hold_leases(planned.calls.values()):
        assert build(planned.calls["sft"], Silent()).cached
    model = calls["optimize"].key
    promote(ArtifactStore(settings.store), model, "production", by="one", reason="")
    assert api.open_artifact("production", elsewhere.store).key == model
    assert all(build(call, Silent()).cached for call in planned.calls.values())
