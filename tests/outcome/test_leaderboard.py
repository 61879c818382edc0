"""The runs of a store: which evaluation belongs to which model, their order, and the settings in which they differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import align_here
from stored import add, named

from alignment_core.artifacts import Artifact, ArtifactStore, Manifest
from alignment_core.artifacts.catalogue import readable_manifest
from alignment_core.outcome.leaderboard import Line, leaderboard
from alignment_core.outcome.names import name_of

DATA = named("1", "ingest", data={"held_out_fraction": 0.1})
SFT = named("2", "sft", {"data": DATA}, sft={"epochs": 1, "batch_size": 8})
START = named("3", "evaluate", {"data": DATA, "sft": SFT})


def policy(prefix: str, start: str = SFT, seed: int = 0, **optimizer: Any) -> str:
    return named(prefix, "optimize", {"data": DATA, "sft": start}, optimizer=optimizer, seed=seed)


DPO = policy("4", name="dpo", beta=0.1)
STRICT = policy("5", name="dpo", beta=0.5)
KTO = policy("6", name="kto", weight=2, seed=7)
RETRAINED = policy("7", start=DPO, name="kto", weight=2, seed=7)


def evaluated(store: ArtifactStore, model: str, share: float | None, day: str = "2026-01-02") -> str:
    """Evaluate a model, compare it with the SFT model if there is a share, and return the key of the evaluation."""
    evaluation = named("", "evaluate", {"policy": model, "data": DATA, "sft": SFT}, day=day)
    add(store, evaluation, day, metrics={"kl": 1.0, "prompts": 10})
    if share is not None:
        rate = {"rate": share, "low": share - 0.1, "high": share + 0.1, "wins": 5, "ties": 0, "losses": 5}
        versus = named("", "head_to_head", {"policy": evaluation, "opponent": START})
        add(store, versus, day, metrics={"win_rate": {"rule": rate}})
    return evaluation


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    store = ArtifactStore(tmp_path / "store")
    sources = {"sources": [{"path": "/data/thumbs.jsonl"}]}
    add(store, DATA, inputs=sources, metrics={"used": {"records": 9, "of": 10}})
    for key in (SFT, START):
        add(store, key)
    for number, key in enumerate((DPO, STRICT, KTO, RETRAINED), 1):
        add(store, key, f"2026-01-0{number}T12:00:00+00:00", run=f"run-{number}", inputs={"model": {"path": "a/b"}})
    return store


def by_run(lines: list[Line]) -> dict[str, Line]:
    return {line.result.run: line for line in lines}


def test_best_first_then_the_newest(store: ArtifactStore) -> None:
    evaluated(store, DPO, 0.55)
    evaluated(store, STRICT, 0.7)
    assert [line.result.run for line in leaderboard(store)] == ["run-2", "run-1", "run-4", "run-3"]


def test_facts_of_a_line(store: ArtifactStore) -> None:
    verdict = named("", "gate", {"policy": evaluated(store, DPO, 0.7)})
    add(store, verdict, metrics={"passed": True, "judge": "rule", "reasons": []})
    store.aliases.promote("candidate", "optimize", DPO, by="", reason="")
    line = by_run(leaderboard(store))["run-1"]
    result = line.result
    assert (line.base, line.data, result.start, result.passed, result.aliases) == (
        "b", ("thumbs.jsonl",), "the SFT model", True, ("candidate",),
    )  # fmt: skip
    assert (result.win_rates[0].rate, result.kl, result.used, result.of) == (0.7, 1.0, 9, 10)


def test_settings_are_compared_where_they_are_a_choice(store: ArtifactStore) -> None:
    shown = {run: dict(line.settings) for run, line in by_run(leaderboard(store)).items()}
    assert shown["run-1"] == {"optimizer.beta": "0.1", "seed": "0"}
    assert shown["run-2"] == {"optimizer.beta": "0.5", "seed": "0"}
    assert shown["run-3"] == {"seed": "7"}, "KTO has one weight here, and DPO none"


def test_an_evaluation_as_a_rival_is_not_the_models_own(store: ArtifactStore) -> None:
    """A later run evaluated DPO as the model in production, on other prompts, and lost to it."""
    evaluated(store, DPO, 0.6)
    rival = evaluated(store, DPO, None, "2026-02-01")
    mine = evaluated(store, RETRAINED, 0.8, "2026-02-01")
    against = {"rate": 0.3, "low": 0.2, "high": 0.4, "wins": 3, "ties": 0, "losses": 7}
    versus = named("", "head_to_head", {"policy": mine, "opponent": rival})
    add(store, versus, "2026-02-01", metrics={"win_rate": {"rule": against}})
    lines = by_run(leaderboard(store))
    assert [each.rate for each in lines["run-1"].result.win_rates] == [0.6]
    retrained = lines["run-4"].result
    assert [(each.opponent, each.rate) for each in retrained.win_rates] == [
        ("the SFT model", 0.8), ("the production model", 0.3),
    ]  # fmt: skip


def test_names_of_artifacts(store: ArtifactStore) -> None:
    names = {artifact.key: name_of(artifact.manifest()) for artifact in store.artifacts()}
    assert names[DPO] == "run-1 · dpo"
    assert names[DATA] == "thumbs.jsonl"
    assert names[START] == "the model before"


def test_command(store: ArtifactStore) -> None:
    evaluated(store, STRICT, 0.7)
    shown = align_here("runs", "--store", store.root).stdout.splitlines()
    head, first = shown[1:3]
    assert head.split()[:4] == ["run", "optimizer", "win", "rate"]
    assert first.startswith("run-2  dpo        70 (60–80) rule")
    assert first.endswith("thumbs.jsonl  optimizer.beta=0.5, seed=0")
    answer = json.loads(align_here("runs", "--store", store.root, "--json").stdout)
    assert [run["run"] for run in answer["runs"]] == ["run-2", "run-4", "run-3", "run-1"]
    assert answer["runs"][0]["settings"] == {"optimizer.beta": "0.5", "seed": "0"}


def test_manifests_that_no_line_needs_are_not_read(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most artifacts of a large store are shards and log-probabilities."""
    for number in range(5):
        add(store, named("", "shard", part=number))
    read: list[str] = []

    def recorded(artifact: Artifact) -> Manifest | None:
        read.append(artifact.kind)
        return readable_manifest(artifact)

    monkeypatch.setattr("alignment_core.artifacts.catalogue.readable_manifest", recorded)
    leaderboard(store)
    assert sorted(read) == ["evaluate", "ingest", *["optimize"] * 4, "sft"]
