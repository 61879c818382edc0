"""A retrain: which votes are new, which model it starts from, the replayed votes, and that each vote counts once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import PipelineConfig
from alignment_core.data.dataset.replay import with_replay
from alignment_core.data.dataset.splits import Split, read_dataset
from alignment_core.errors import ConfigError, DataError
from alignment_core.execution.build import build_here
from alignment_core.feedback import Rater, open_feedback
from alignment_core.planning.pipeline import Plan
from alignment_core.planning.retrain import RETRAINED, TooFewVotes, last_vote_used, plan_retrain
from alignment_core.plugin_api import Row
from alignment_core.progress import Silent
from alignment_core.registry import load_registry


@pytest.fixture
def settings(tiny_model: Path, tmp_path: Path) -> Callable[..., PipelineConfig]:
    rows = [{"prompt": f"What is {n} plus {n}?", "completion": f"It is {2 * n}.", "label": n % 2} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(**changes: Any) -> PipelineConfig:
        step = {"batch_size": 8, "learning_rate": 1e-3}
        return PipelineConfig.model_validate(
            {
                "model": {"base": str(tiny_model), "load_in": "fp32", "max_length": 64, "lora": {"rank": 2}},
                "data": {"sources": [{"path": str(tmp_path / "rows.jsonl")}], "held_out_fraction": 0.3},
                "sft": step,
                "optimizer": {"name": "kto", **step},
                "evaluation": {"max_prompts": 2, "max_new_tokens": 4},
                "gate": {"win_rate_over_sft": None, "win_rate_over_production": None},
                "store": tmp_path / "store",
                "feedback": str(tmp_path / "feedback.db"),
                "device": "cpu",
                "retrain": {"min_votes": 6},
                **changes,
            }
        )

    return make


def vote(tmp_path: Path, numbers: Sequence[int], rater: str = "Ann") -> None:
    with open_feedback(str(tmp_path / "feedback.db")) as store:
        for number in numbers:
            prompt = ({"role": "user", "content": f"Tell me something about the number {number}."},)
            store.thumb(Rater(rater), store.add_response(prompt, f"I like {number}.", "m"), number % 2 == 0)


def planned(config: PipelineConfig) -> Plan:
    plan = plan_retrain(config, load_registry())
    assert isinstance(plan, Plan), str(plan)
    return plan


def run_retrain(plan: Plan, config: PipelineConfig) -> None:
    """Do what the flow does if the gate passes."""
    for call in plan.calls().values():
        build_here(call, Silent())
    aliases = ArtifactStore(config.store).aliases
    for alias in (RETRAINED, "production"):
        aliases.promote(alias, "optimize", plan.optimize.key, by="test", reason="test")


def test_votes_count_once_and_the_next_retrain_starts_from_production(
    settings: Callable[..., PipelineConfig], tmp_path: Path
) -> None:
    config = settings()
    vote(tmp_path, range(5))
    assert str(plan_retrain(config, load_registry())) == "5 new votes, 6 needed"
    vote(tmp_path, range(5, 14))
    first = planned(config)
    assert (first.older_votes, first.optimize.standing) == (None, {})
    assert planned(config).optimize.key == first.optimize.key  # a failed retrain is repeated with the same votes
    run_retrain(first, config)
    store = ArtifactStore(tmp_path / "store")
    assert last_vote_used(store, first.optimize.key, config.feedback) == 14
    assert last_vote_used(store, first.sft.key if first.sft else "", config.feedback) == 0
    assert last_vote_used(store, first.optimize.key, str(tmp_path / "another.db")) == 0
    assert plan_retrain(config, load_registry()) == TooFewVotes(0, 6)

    vote(tmp_path, range(14, 21))
    vote(tmp_path, [0])  # the same vote by the same rater counts as new and no longer as old
    second = planned(config)
    assert second.sft is not None
    assert first.sft is not None
    assert (second.sft.key, second.ingest.key) == (first.sft.key, first.ingest.key)
    assert second.optimize.standing == {"sft": first.optimize.key}
    assert "sft" not in second.optimize.parents
    assert second.reference is not None
    assert second.reference.standing == {"sft": first.optimize.key}
    assert second.votes is not None
    assert second.older_votes is not None
    assert second.votes.inputs["sources"][0]["votes_after"] == 14
    run_retrain(second, config)
    counts = {name: _rows_of(store, call.key) for name, call in second.calls().items() if "votes" in name}
    assert counts == {"votes": 8, "older_votes": 13}
    # The old held-out prompts measure what a retrain forgets.
    assert second.evaluate.parents["data"] == first.ingest.key
    assert second.evaluate_production is not None
    assert second.evaluate_production.standing == {"policy": first.optimize.key}
    # The held-out prompts of the new votes measure what it learned.
    measured, ingested = (store.find(key) for key in (second.evaluate.key, second.votes.key))
    assert measured is not None
    assert ingested is not None
    rows = ingested.manifest().metrics["rows"]
    assert rows["held_out"]["feedback"] > 0
    assert measured.manifest().metrics["new_votes"]["feedback"] == rows["held_out"]["feedback"]
    assert rows["held_out"]["feedback"] + rows["train"]["feedback"] == 8

    vote(tmp_path, range(30, 36))
    fresh = planned(settings(retrain={"min_votes": 6, "start": "sft"}))
    assert (fresh.older_votes, fresh.optimize.standing) == (None, {})
    assert fresh.votes is not None
    assert fresh.votes.inputs["sources"][0]["votes_after"] == 0


def _rows_of(store: ArtifactStore, key: str) -> int:
    artifact = store.find(key)
    assert artifact is not None
    conversions = artifact.manifest().metrics["conversions"]
    return sum(conversions[split].get("feedback given", 0) for split in conversions)


def test_mistakes_are_reported(settings: Callable[..., PipelineConfig], tmp_path: Path) -> None:
    registry = load_registry()
    with pytest.raises(DataError, match="no such feedback store"):
        plan_retrain(settings(), registry)
    vote(tmp_path, range(8))
    with pytest.raises(ConfigError, match="through the gate"):
        plan_retrain(settings(gate=None), registry)
    only = {"sources": [{"path": str(tmp_path / "feedback.db")}]}
    with pytest.raises(ConfigError, match="a data source besides the feedback store"):
        plan_retrain(settings(data=only), registry)


@pytest.fixture
def split(settings: Callable[..., PipelineConfig], tmp_path: Path) -> Split:
    config = settings()
    vote(tmp_path, range(8))
    plan = planned(config)
    artifact, _ = build_here(plan.ingest, Silent())
    return read_dataset(artifact.path).train


def test_replay_gives_the_requested_share(split: Split) -> None:
    def rows(prefix: str, count: int) -> list[Row]:
        return [Row(f"{prefix}{number}", {}) for number in range(count)]

    def mix(new: int, old: int, share: float, seed: str = "0") -> list[str]:
        fresh, older = replace(split, feedback=rows("new", new)), replace(split, feedback=rows("old", old))
        found = with_replay(fresh, older, split, share, seed).feedback
        assert [found[place].id for place in range(len(found))] == [row.id for row in found]
        assert [row.id for row in found[1:3]] == [row.id for row in found][1:3]
        return [row.id for row in found]

    half = mix(10, 100, 0.5)
    assert half[:10] == [f"new{number}" for number in range(10)]
    assert len(half) == len(set(half)) == 20
    assert half == mix(10, 100, 0.5)
    assert half != mix(10, 100, 0.5, seed="1")
    assert len(mix(10, 100, 0.75)) == 40  # 30 of 40
    assert len(mix(10, 5, 0.5)) == 15  # only 5 old rows are available
    assert len(mix(10, 100, 0)) == 10
