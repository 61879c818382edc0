"""The commands for the artifact store as users and scripts run them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from command import align_here
from stored import A, B, C, D, add, named

from alignment_core.artifacts import ArtifactStore


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """C ← A ← B, and D without parents."""
    store = ArtifactStore(tmp_path / "store")
    add(store, C, "2026-01-01")
    add(store, A, "2026-01-02")
    add(store, B, "2026-01-03")
    add(store, D, "2026-01-04")
    return store.root


def align(store: Path, *arguments: str) -> CompletedProcess[str]:
    return align_here(*arguments, "--store", store)


def json_of(store: Path, *arguments: str) -> dict[str, object]:
    done = align(store, *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_promote_list_rollback(store: Path) -> None:
    done = align(store, "promote", B[:6])
    assert (done.returncode, done.stdout) == (0, f"production is now optimize/{B}\n")
    assert done.stderr == f"align: the model optimize/{B[:12]} was not judged by a gate\n"
    done = align(store, "promote", "latest")
    assert done.returncode == 2
    assert f"To promote it all the same, name it: `align promote {D[:12]}`" in done.stderr
    change = json.loads(align(store, "promote", D, "--reason", "shorter", "--json").stdout)
    assert (change["alias"], change["key"], change["previous"], change["reason"]) == (
        "production", D, B, "shorter",
    )  # fmt: skip
    shown = align(store, "artifacts", "list").stdout
    assert "shorter" in shown
    assert D[:12] in shown
    assert "2026-01-04 00:00" in shown
    assert len(re.findall(r"\b\d{4}-\d\d-\d\d \d\d:\d\d\b", shown)) == 6, "four artifacts and two promotions"
    listed = json_of(store, "artifacts", "list", "--kind", "optimize")
    assert [(entry["key"], entry["aliases"]) for entry in listed["artifacts"]] == [(D, ["production"]), (B, [])]  # type: ignore[attr-defined]
    assert align(store, "rollback", "production").stdout == f"production is now optimize/{B} (previously {D})\n"
    done = align(store, "promote", D, "test")
    assert done.stdout == f"test is now optimize/{D}\n", "there is nothing to go back to"
    assert align(store, "promote", B, "test").stdout.splitlines()[1:] == [
        f"Undo with: align rollback test --store {store}"
    ]
    assert align(store, "rollback", "test").stdout == f"test is now optimize/{D} (previously {B})\n"
    done = align(store, "rollback")
    assert (done.returncode, done.stderr.splitlines()) == (
        2,
        [
            "align: production: there is no earlier promotion to roll back to. got 1 promotion that was not rolled "
            f"back, expected at least 2. List the aliases with `align artifacts list --store {store}`."
        ],
    )


def test_promoted_models_are_named_and_those_that_lose_are_warned_about(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    sft = named("2", "sft", run="mine")
    start = named("3", "evaluate", {"sft": sft})
    model = named("4", "optimize", {"sft": sft}, optimizer={"name": "kto"})
    after = named("5", "evaluate", {"policy": model, "sft": sft})
    for key in (sft, start, model, after):
        add(store, key, run="mine", inputs={"model": {"path": "a/b"}}, metrics={"prompts": 16})
    rates = {"rule": (0.1, 0.49), "reward": (0.1, 0.5)}  # only the first one is surely a loss
    metrics = {
        judge: {"rate": 0.25, "low": low, "high": high, "wins": 4, "ties": 0, "losses": 12}
        for judge, (low, high) in rates.items()
    }
    add(store, named("6", "head_to_head", {"policy": after, "opponent": start}), metrics={"win_rate": metrics})
    done = align(store.root, "promote", "mine")
    assert done.stdout == f"production is now optimize/{model}, mine · kto\n"
    assert done.stderr.splitlines() == [
        f"align: the model optimize/{model[:12]} of the run `mine` was not judged by a gate",
        "align: the model loses to the SFT model: it is better on 25 % of 16 held-out prompts (10–49, judge rule). "
        "`align runs` lists all models",
    ]


def test_show_lineage_verify(store: Path) -> None:
    assert json_of(store, "artifacts", "show", "latest")["key"] == D
    assert "parents.sft" in align(store, "artifacts", "show", B).stdout
    lineage = json_of(store, "artifacts", "lineage", B)
    assert {entry["key"] for entry in lineage["artifacts"]} == {A, B, C}  # type: ignore[attr-defined]
    assert align(store, "artifacts", "lineage", B).stdout.count(f"ingest/{C}") == 2, (
        "as a parent of B and of its SFT model"
    )
    assert align(store, "artifacts", "verify").stdout == "4 of 4 artifacts match their manifests.\n"
    (store / "sft" / A / "weights").unlink()
    done = align(store, "artifacts", "verify")
    assert (done.returncode, done.stdout) == (
        1,
        f"sft/{A}: weights is missing\n3 of 4 artifacts match their manifests.\n",
    )


def test_prune_lists_then_removes(store: Path) -> None:
    align(store, "promote", A)
    dry_run = json_of(store, "artifacts", "prune", "--dry-run")
    assert (store / "optimize" / D).is_dir()
    shown = align(store, "artifacts", "prune").stdout.splitlines()
    assert [line.split(":")[0] for line in shown[:-1]] == [entry["name"] for entry in dry_run["removed"]]  # type: ignore[attr-defined]
    assert shown[-1].startswith("Removed 2 folders, ")
    assert not (store / "optimize" / D).exists()
    assert (store / "ingest" / C).is_dir()


def test_error_is_one_paragraph(store: Path) -> None:
    done = align(store, "promote", "c")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith(f"align: {store}: there is no such artifact. got c, of kind ingest, expected one of ")
