"""The `production` model in a run's plan: evaluated once, compared on text, and rejected if it is damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stored import add_placeholder

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.models import promote
from alignment_core.config_file import check_config
from alignment_core.errors import AlignmentError, ArtifactError, ConfigError, ModelError
from alignment_core.execution.stage import StageCall
from alignment_core.planning.pipeline import Plan, plan_pipeline
from alignment_core.registry import load_registry

PlanOf = Callable[..., Plan]


@pytest.fixture
def plan(tmp_path: Path, tiny_model: Path) -> PlanOf:
    """Return a function that plans a run with changed settings."""
    pairs = [{"prompt": f"What is {n}?", "chosen": "Yes.", "rejected": "No."} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))

    def make(**changes: Any) -> Plan:
        settings = {
            "model": {"base": str(tiny_model), "load_in": "fp32", "max_length": 128},
            "data": {"sources": [{"path": str(tmp_path / "pairs.jsonl")}]},
            "store": str(tmp_path / "store"),
            **changes,
        }
        return plan_pipeline(check_config(settings), load_registry())

    return make


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def in_production(store: ArtifactStore, call: StageCall) -> Path:
    """Publish a placeholder artifact for the call and promote it to `production`."""
    artifact = add_placeholder(store, call)
    promote(store, call.key, "production", by="", reason="")
    return artifact.path


def test_without_production_model_nothing_is_compared_with_it(plan: PlanOf) -> None:
    made = plan()
    assert (made.evaluate_production, made.over_production, made.ingest_production, made.gate) == (None,) * 4
    assert made.over_sft.reads() == {"policy": made.evaluate.key, "opponent": made.evaluate_sft.key}


def test_production_model_of_the_same_base_reuses_its_own_evaluation(plan: PlanOf, store: ArtifactStore) -> None:
    first = plan(optimizer={"name": "dpo", "beta": 0.1})
    in_production(store, first.optimize)
    made = plan(optimizer={"name": "dpo", "beta": 0.2})
    assert made.evaluate_production is not None
    assert made.over_production is not None
    assert made.evaluate_production.key == first.evaluate.key
    assert made.evaluate_production.standing == {"policy": first.optimize.key}
    assert made.over_production.reads() == {"policy": made.evaluate.key, "opponent": first.evaluate.key}
    assert made.ingest_production is None
    assert made.evaluate.key != first.evaluate.key, "the new run trains a different model"
    # A change of the production model changes the comparison but not the evaluation of the model itself.
    assert plan(optimizer={"name": "dpo", "beta": 0.1}).evaluate.key == first.evaluate.key


def test_production_model_is_compared_with_itself(plan: PlanOf, store: ArtifactStore) -> None:
    in_production(store, plan().optimize)
    made = plan()
    assert made.over_production is not None
    assert set(made.over_production.reads().values()) == {made.evaluate.key}


def test_sft_model_in_production(plan: PlanOf, store: ArtifactStore) -> None:
    first = plan()
    assert first.sft is not None
    in_production(store, first.sft)
    made = plan()
    assert made.evaluate_production is not None
    assert made.evaluate_production.key == made.evaluate_sft.key


def other_base(tiny_model: Path, folder: Path) -> Path:
    """Copy the model and change its tokenizer config."""
    shutil.copytree(tiny_model, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 256}))
    return folder


@pytest.fixture
def other(plan: PlanOf, store: ArtifactStore, tiny_model: Path, tmp_path: Path) -> Plan:
    """Plan a run on another base model and promote its model to `production`."""
    base = {"base": str(other_base(tiny_model, tmp_path / "other")), "load_in": "fp32", "max_length": 64}
    made = plan(model=base)
    in_production(store, made.optimize)
    return made


def test_production_model_of_another_base_uses_its_own_tokenizer(plan: PlanOf, other: Plan, tmp_path: Path) -> None:
    made = plan(evaluation={"reward_model": True, "safety": {"path": str(tmp_path / "pairs.jsonl")}})
    assert made.ingest_safety is not None
    assert made.ingest_production is not None
    assert made.ingest_production_safety is not None
    assert made.evaluate_production is not None
    assert made.over_production is not None
    assert made.reward is not None
    assert made.ingest_production.key == other.ingest.key
    assert made.evaluate_production.inputs["model"] == other.evaluate.inputs["model"]
    safety = made.ingest_production_safety.key
    assert made.evaluate_production.reads() == {
        "data": other.ingest.key, "safety": safety, "policy": other.optimize.key,
    }  # fmt: skip
    assert safety != made.ingest_safety.key, "the same prompts with another tokenizer"
    # The run's reward model scores the text of both. Responses of its own base were scored when they were sampled.
    assert made.over_production.parents["reward"] == made.reward.key
    assert "reward" not in made.over_sft.parents


def test_missing_or_changed_base_of_the_production_model_is_reported(plan: PlanOf, other: Plan, tmp_path: Path) -> None:
    config = tmp_path / "other" / "tokenizer_config.json"
    config.write_text(config.read_text().replace("256", "257"))
    with pytest.raises(ArtifactError, match="base model of the `production` model has changed since it was trained"):
        plan()
    shutil.rmtree(tmp_path / "other")
    with pytest.raises(ModelError, match=r"there is no such folder\. got .*other"):
        plan()


def damage(folder: Path) -> None:
    (folder / "weights").write_text("wEights")


@pytest.mark.parametrize(
    ("break_artifact", "message"),
    [
        (damage, r"the `production` model is damaged: weights does not match manifest\.json"),
        (shutil.rmtree, r"the artifact with the alias `production` is no longer in the store"),
        (lambda folder: (folder / "manifest.json").write_text("{"), r"is damaged: manifest\.json cannot be read"),
    ],
)
def test_damaged_or_missing_production_model_is_reported(
    plan: PlanOf, store: ArtifactStore, break_artifact: Callable[[Path], None], message: str
) -> None:
    break_artifact(in_production(store, plan().optimize))
    with pytest.raises(ArtifactError, match=message):
        plan()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate": {}}, r"gate: the gate needs a win rate, but the run has no judge\. Set "),
        ({"gate": {"judge": "reward"}}, r"gate\.judge: this run has no such judge\. got reward"),
        (
            {"gate": {"win_rate_over_sft": None, "win_rate_over_production": None, "max_safety_drop": {"wordlist": 0}}},
            r"gate\.max_safety_drop: the gate needs an evaluator's score on the safety prompts, which the run",
        ),
        (
            {"evaluation": {"evaluators": [{"name": "wordlist"}, {"name": "wordlist", "wanted": ["yes"]}]}},
            r"evaluation\.evaluators: the name of an evaluator is already in use",
        ),
        (
            {"evaluation": {"endpoint": {"url": "http://me:secret@host/v1", "model": "m"}}},
            r"evaluation\.endpoint\.url: the URL contains a secret",
        ),
        (
            {"evaluation": {"endpoint": {"url": "https://host/v1?api_key=k", "model": "m"}}},
            r"evaluation\.endpoint\.url: the URL contains a secret",
        ),
        (
            {"evaluation": {"endpoint": {"url": "localhost:8000/v1", "model": "m"}}},
            r"evaluation\.endpoint\.url: localhost:8000/v1 is no web address, expected one such as http",
        ),
        ({"evaluation": {"endpoint": {"url": "http://[::1", "model": "m"}}}, "is no web address"),
    ],
)
def test_rules_that_can_never_apply_are_reported_before_anything_runs(
    plan: PlanOf, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(**changes)


def test_judges_are_in_the_order_in_which_the_gate_uses_them(plan: PlanOf) -> None:
    endpoint = {"url": "http://127.0.0.1:9/v1", "model": "m", "key_variable": "SOME_KEY", "timeout_seconds": 5}
    everything = {
        "reward_model": True, "judge_fraction": 0.5, "evaluators": [{"name": "wordlist"}], "endpoint": endpoint,
    }  # fmt: skip
    made = plan(evaluation=everything, gate={})
    assert made.over_sft.config["judges"] == ["endpoint", "judge", "wordlist", "reward"]
    assert made.gate is not None
    assert made.gate.config["judge"] == "endpoint"
    del everything["endpoint"]
    made = plan(evaluation=everything, gate={"max_kl": 3})
    assert made.gate is not None
    assert made.gate.config["judge"] == "judge"
    # Connection settings of the endpoint do not enter the key.
    one, two = (plan(evaluation={"endpoint": {**endpoint, **more}}).over_sft for more in ({}, {"timeout_seconds": 6}))
    assert one.key == two.key
    assert plan(evaluation={"endpoint": {**endpoint, "model": "n"}}).over_sft.key != one.key


def test_judge_reward_model_and_other_models_train_on_different_prompts(plan: PlanOf) -> None:
    made = plan(evaluation={"judge_fraction": 0.25, "reward_model": True})
    assert made.judge is not None
    assert made.reward is not None
    assert made.reference is not None
    assert made.judge.config["fold"] == {"judge_fraction": 0.25, "part": "judge"}
    for call in (made.reward, made.reference, made.optimize):
        assert call.config["fold"] == {"judge_fraction": 0.25, "part": "rest"}
    assert "fold" not in plan().optimize.config


def test_planning_errors_have_exit_code_2(plan: PlanOf) -> None:
    with pytest.raises(AlignmentError) as caught:
        plan(gate={})
    assert caught.value.exit_code == 2


def test_what_happens_after_the_verdict_does_not_change_its_key(plan: PlanOf) -> None:
    rules = {"win_rate_over_sft": None, "win_rate_over_production": None, "max_kl": 5}
    plain = plan(gate=rules).calls()
    asked = plan(gate={**rules, "to_production": True, "approval": True, "approval_days": 1}).calls()
    assert {name: call.key for name, call in asked.items()} == {name: call.key for name, call in plain.items()}
