"""Pruning removes unneeded artifacts, and never one that an alias or a running process needs."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stored import A, B, C, D, add, named

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.models import Standing, find_model, promote, rollback
from alignment_core.artifacts.prune import prune
from alignment_core.errors import ArtifactError
from alignment_core.progress import Silent


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """C ← A ← B, and D without parents."""
    store = ArtifactStore(tmp_path / "store")
    add(store, C)
    add(store, A)
    add(store, B)
    add(store, D)
    return store


def stored_keys(store: ArtifactStore) -> set[str]:
    return {artifact.key for artifact in store.artifacts()}


def test_mistyped_store_is_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="none: there is no artifact store"):
        prune(ArtifactStore(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    assert prune(ArtifactStore(tmp_path)) == []


def test_dry_run_lists_artifacts_and_sizes_and_removes_nothing(store: ArtifactStore) -> None:
    promote(store, A, "production", by="", reason="")
    listed = prune(store, dry_run=True)
    assert stored_keys(store) == {A, B, C, D}
    assert [(item.what, item.name) for item in listed] == [("artifact", f"optimize/{B}"), ("artifact", f"optimize/{D}")]
    folder = store.root / "optimize" / B
    # `weights` contains the 32 digits of the key
    assert listed[0].size == 32 + (folder / "manifest.json").stat().st_size
    assert prune(store) == listed
    assert stored_keys(store) == {A, C}
    assert not list((store.root / ".trash").glob("*"))


def test_alias_keeps_its_lineage_and_what_a_rollback_needs(store: ArtifactStore) -> None:
    promote(store, B, "production", by="", reason="")
    promote(store, D, "production", by="", reason="")
    assert prune(store) == []
    rollback(store, "production", by="", reason="")
    # D was rolled back, so nothing refers to it anymore.
    assert [item.name for item in prune(store)] == [f"optimize/{D}"]
    assert store.find(B) is not None


def test_verdict_on_a_promoted_model_stays(store: ArtifactStore) -> None:
    """Otherwise the model would count as not judged. What the verdict compared it with is not needed."""
    judged = {}
    for model in (B, D):
        evaluations = [named("", "evaluate", {"policy": key}) for key in (model, A)]
        judged[model] = [*evaluations, named("", "gate", dict(zip(("policy", "sft"), evaluations, strict=True)))]
        for key in judged[model]:
            if store.find(key) is None:
                add(store, key, metrics={"passed": True})
    promote(store, B, "production", by="", reason="")
    prune(store)
    evaluation, _, verdict = judged[B]
    assert stored_keys(store) == {A, B, C, evaluation, verdict}
    assert find_model(store, "production").standing is Standing.PASSED


def test_recent_artifacts_are_kept_on_request(store: ArtifactStore) -> None:
    for key in (D, B):
        for path in (store.root / "optimize" / key, *(store.root / "optimize" / key).iterdir()):
            os.utime(path, (0, 0))
    os.utime(store.root / "optimize" / B / "weights")
    assert [item.name for item in prune(store, older_than_seconds=3600)] == [f"optimize/{D}"]


def test_unfinished_and_damaged_builds_are_removed_unless_needed(store: ArtifactStore) -> None:
    for key in (A, "e" * 32):
        (store.root / ".building" / key / "checkpoints").mkdir(parents=True)
    (store.root / "optimize" / D / "weights").unlink()
    assert store.find(D) is None
    promote(store, B, "production", by="", reason="")
    assert [(item.what, item.name) for item in prune(store)] == [
        ("unfinished build", f".building/{'e' * 32}"),
        ("damaged", f"quarantined/{D}.1"),
    ]


def test_page_of_a_run_goes_with_its_model(store: ArtifactStore) -> None:
    promote(store, A, "production", by="", reason="")
    pages = store.root / "reports"
    pages.mkdir()
    names = [f"mine-{A[:12]}.html", f"mine-{B[:12]}.html", f"older-{'e' * 12}.html"]
    for name in [*names, "notes.html", f"mine-{B[:12]}.txt"]:
        (pages / name).write_text("page")
    os.utime(pages / names[2], (0, 0))
    assert [item.name for item in prune(store, older_than_seconds=3600)] == [f"reports/{names[2]}"]
    listed = prune(store, dry_run=True)
    assert [(item.what, item.name, item.size) for item in listed if item.what != "artifact"] == [
        ("report", f"reports/{names[1]}", 4)
    ]
    assert prune(store) == listed
    assert {path.name for path in pages.iterdir()} == {names[0], "notes.html", f"mine-{B[:12]}.txt"}


def test_damaged_artifact_takes_no_page_with_it_that_was_rebuilt(store: ArtifactStore) -> None:
    (store.root / "optimize" / D / "weights").unlink()
    assert store.find(D) is None
    os.utime(store.root / "quarantined" / f"{D}.1", (0, 0))
    os.utime(store.root / "quarantined" / f"{D}.1" / "manifest.json", (0, 0))
    add(store, D)
    page = store.root / "reports" / f"mine-{D[:12]}.html"
    page.parent.mkdir()
    page.touch()
    os.utime(page, (0, 0))
    assert [item.what for item in prune(store, older_than_seconds=3600)] == ["damaged"]
    assert page.exists()


def test_unreadable_lineage_stops_pruning(store: ArtifactStore) -> None:
    promote(store, B, "production", by="", reason="")
    (store.root / "sft" / A / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"nothing was removed: the manifest of a needed artifact cannot be read"):
        prune(store)
    assert stored_keys(store) == {A, B, C, D}


def test_folders_that_are_not_artifacts_are_kept(store: ArtifactStore) -> None:
    (store.root / "notes" / "mine").mkdir(parents=True)
    prune(store)
    assert stored_keys(store) == set()
    assert (store.root / "notes" / "mine").is_dir()


def test_leftovers_of_a_killed_pruner_are_removed(store: ArtifactStore) -> None:
    (store.root / ".trash" / "old" / "artifact").mkdir(parents=True)
    prune(store, dry_run=True)
    assert (store.root / ".trash" / "old").is_dir()
    prune(store)
    assert not list((store.root / ".trash").glob("*"))


def test_build_in_progress_is_kept(store: ArtifactStore) -> None:
    key = "e" * 32
    with store.building("sft", key, Silent()) as building:
        (building.out / "half").write_text("half")
        assert key not in {item.name.rpartition("/")[2] for item in prune(store)}
        assert (building.out / "half").exists()


RUN = """
    import sys, time
    from pathlib import Path
    from alignment_core.artifacts import ArtifactStore
    with ArtifactStore(Path(sys.argv[1])).leases.held(sys.argv[2:]):
        print("leased", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def run(store: ArtifactStore) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts a process that leases keys until its stdin is closed."""
    started: list[subprocess.Popen[str]] = []

    def start(*keys: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", textwrap.dedent(RUN), str(store.root), *keys]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "leased\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_leased_artifacts_and_their_lineage_are_kept(
    store: ArtifactStore, run: Callable[..., subprocess.Popen[str]]
) -> None:
    first, second = run(A, "f" * 32), run(B)
    (store.root / ".building" / ("f" * 32) / "checkpoints").mkdir(parents=True)
    assert [item.name for item in prune(store)] == [f"optimize/{D}"]
    second.communicate()  # exits normally
    assert [item.name for item in prune(store)] == [f"optimize/{B}"]
    first.kill()
    first.wait()
    assert [item.name for item in prune(store)] == [f".building/{'f' * 32}", f"ingest/{C}", f"sft/{A}"]
    assert [path.name for path in (store.root / ".leases").iterdir()] == [".gate"]


PRUNER = """
    import sys
    from pathlib import Path
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.artifacts.prune import prune
    print("pruning", flush=True)
    while True:
        prune(ArtifactStore(Path(sys.argv[1])))
"""


def test_leased_artifacts_survive_concurrent_and_killed_pruners(store: ArtifactStore) -> None:
    """Lease two keys, build missing artifacts and read them, while three pruners run and one of them is killed."""
    pruners = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(PRUNER), str(store.root)], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    try:
        for pruner in pruners:
            assert pruner.stdout is not None
            assert pruner.stdout.readline() == b"pruning\n"
        for number in range(200):
            with store.leases.held([A, C]):
                if store.find(C) is None:
                    add(store, C)
                if store.find(A) is None:
                    add(store, A)
                time.sleep(0.005)
                assert store.find(A) is not None, number
                assert store.find(C) is not None, number
            if number == 20:
                pruners[0].kill()
        deadline = time.monotonic() + 120
        while stored_keys(store):  # released artifacts are removed
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        for pruner in pruners:
            pruner.kill()
            pruner.communicate()
    prune(store)
    assert not list((store.root / ".trash").glob("*"))
