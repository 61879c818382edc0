"""Aliases: their history, how references are resolved, and concurrent writers that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from stored import A, B, C, D, add

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.catalogue import catalogue, lineage, resolve
from alignment_core.artifacts.models import promote, rollback
from alignment_core.errors import ArtifactError


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """Store the data set C, the SFT model A trained on it, and the policy B trained from both."""
    store = ArtifactStore(tmp_path / "store")
    add(store, C, "2026-01-01")
    add(store, A, "2026-01-02")
    add(store, B, "2026-01-03")
    return store


def give(store: ArtifactStore, reference: str, alias: str = "production") -> str:
    change, _ = promote(store, reference, alias, by="ann", reason="better")
    return change.key


def current_key(store: ArtifactStore, alias: str = "production") -> str | None:
    current = store.aliases.current(alias)
    return None if current is None else current.key


def test_history_records_action_model_author_and_reason(store: ArtifactStore) -> None:
    assert current_key(store) is None
    give(store, A)
    promote(store, B, "production", by="run 7", reason="win rate 0.7")
    rollback(store, "production", by="bob", reason="too long")
    first, second, third = store.aliases.history("production")
    assert (first.action, first.kind, first.key, first.previous, first.by, first.reason) == (
        "promote", "sft", A, None, "ann", "better",
    )  # fmt: skip
    assert (second.action, second.kind, second.key, second.previous, second.by, second.reason) == (
        "promote", "optimize", B, A, "run 7", "win rate 0.7",
    )  # fmt: skip
    assert (third.action, third.kind, third.key, third.previous, third.by, third.reason) == (
        "rollback", "sft", A, B, "bob", "too long",
    )  # fmt: skip
    assert store.aliases.names() == ["production"]
    assert {entry.artifact.key: entry.aliases for entry in catalogue(store)} == {A: ("production",), B: (), C: ()}


def test_rollbacks_go_back_one_promotion_each(store: ArtifactStore) -> None:
    add(store, D)
    for key in (A, B, D):
        give(store, key)
    assert [rollback(store, "production", by="", reason="").key for _ in range(2)] == [B, A]
    with pytest.raises(ArtifactError, match=r"no earlier promotion to roll back to\. got 1 promotion"):
        rollback(store, "production", by="", reason="")
    # A rollback undoes the promotion that followed the last rollback.
    give(store, D)
    assert rollback(store, "production", by="", reason="").key == A


def test_promoting_the_current_model_changes_nothing(store: ArtifactStore) -> None:
    give(store, A)
    give(store, A)
    assert len(store.aliases.history("production")) == 1


def test_aliases_are_independent(store: ArtifactStore) -> None:
    give(store, A)
    give(store, B, "candidate")
    assert (current_key(store), current_key(store, "candidate")) == (A, B)


@pytest.mark.parametrize(
    ("reference", "key"),
    [("a" * 3, A), ("aba", B), ("production", A)],
    ids=["prefix", "longer prefix", "alias"],
)
def test_references_to_models(store: ArtifactStore, reference: str, key: str) -> None:
    give(store, A)
    assert give(store, reference, "candidate") == key


@pytest.mark.parametrize(
    ("reference", "paragraph"),
    [
        (
            "a",
            r"the key prefix is ambiguous: 2 artifacts match\. got a, expected a longer prefix of one of opt",
        ),
        ("e", r"there is no such artifact\. got e, expected one of kind optimize or sft\. List the artifacts"),
        ("c", r"there is no such artifact\. got c, of kind ingest, expected one of kind optimize or sft"),
        ("candidate", r"this is no alias, no run with an aligned model, and no key .* got candidate"),
        ("Production", r"this is no alias, no run with an aligned model, and no key .* got Production"),
    ],
)
def test_invalid_references(store: ArtifactStore, reference: str, paragraph: str) -> None:
    with pytest.raises(ArtifactError, match=paragraph):
        give(store, reference)


@pytest.mark.parametrize("name", ["", "latest", "cafe", "UP", "a/b", "../x", ".lock", "a b", "-a"])
def test_invalid_aliases(store: ArtifactStore, name: str) -> None:
    with pytest.raises(ArtifactError, match="this is not a valid alias"):
        give(store, A, name)
    assert store.aliases.names() == []


def test_only_an_intact_model_is_promoted(store: ArtifactStore) -> None:
    give(store, A)
    (store.root / "optimize" / B / "weights").write_text("x" * 32)
    with pytest.raises(ArtifactError, match=r"cannot be promoted: weights does not match manifest\.json"):
        give(store, B)
    (store.root / "sft" / A / "weights").unlink()
    add(store, D)
    give(store, D)
    with pytest.raises(ArtifactError, match=r"cannot be promoted: weights is missing"):
        rollback(store, "production", by="", reason="")
    assert current_key(store) == D


def test_alias_of_a_missing_artifact_is_reported(store: ArtifactStore) -> None:
    give(store, B)
    (store.root / "optimize" / B).rename(store.root / "elsewhere")
    with pytest.raises(
        ArtifactError, match=r"the artifact with the alias `production` is no longer in the store\. got opt"
    ):
        resolve(store, "production")


def test_damaged_history_is_reported_and_not_changed(store: ArtifactStore) -> None:
    give(store, A)
    path = store.root / ".aliases" / "production.jsonl"
    path.write_text(path.read_text() + '{"action": "promote"}\n')
    with pytest.raises(ArtifactError, match="the history of the alias `production` is damaged"):
        give(store, B)
    assert len(path.read_text().splitlines()) == 2


def test_lineage_includes_missing_artifacts(store: ArtifactStore) -> None:
    (store.root / "ingest" / C).rename(store.root / "elsewhere")
    found = lineage(store, [B])
    assert {key: artifact and artifact.kind for key, artifact in found.items()} == {B: "optimize", A: "sft", C: None}


PROMOTER = """
    import sys
    from pathlib import Path
    from alignment_core.artifacts import ArtifactStore
    store = ArtifactStore(Path(sys.argv[1]))
    print("ready", flush=True)
    for number in range(int(sys.argv[2]), 10**9, 2):
        store.aliases.promote("production", "sft", f"{number:032x}", by=sys.argv[2], reason="")
"""


def test_concurrent_promoters_that_are_killed_lose_no_line(tmp_path: Path) -> None:
    """Each line has the key before it as `previous`. No line is lost or torn, and each writer's lines are in order."""
    command = [sys.executable, "-c", textwrap.dedent(PROMOTER), str(tmp_path)]
    writers = [subprocess.Popen([*command, str(start)], stdout=subprocess.PIPE) for start in (0, 1)]
    path = tmp_path / ".aliases" / "production.jsonl"
    deadline = time.monotonic() + 240

    def writes() -> list[int]:
        lines = path.read_text().splitlines() if path.exists() else []
        written = [json.loads(line)["by"] for line in lines]
        return [written.count(by) for by in ("0", "1")]

    try:
        while min(writes()) < 25:
            assert all(writer.poll() is None for writer in writers), "a writer failed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.communicate()
    aliases = ArtifactStore(tmp_path).aliases
    history = aliases.history("production")
    assert [change.previous for change in history] == [None, *(change.key for change in history[:-1])]
    for start in (0, 1):
        numbers = [int(change.key, 16) for change in history if change.by == str(start)]
        assert numbers == list(range(start, start + 2 * len(numbers), 2))
    # The lock of the killed writers is free, and a line they wrote only partly does no harm.
    assert aliases.promote("production", "sft", D, by="", reason="").previous == history[-1].key
