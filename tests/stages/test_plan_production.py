"""The model in production in a run's plan: measured once, compared on text, refused where it is not whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment_core.artifacts import ArtifactStore, Manifest
from alignment_core.artifacts.catalogue import promote
from alignment_core.config_file import check_config
from alignment_core.errors import AlignmentError, ArtifactError, ConfigError, ModelError
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_core.stages.base import StageCall
from alignment_core.stages.plan import Plan, make_plan

PlanOf = Callable[..., Plan]


@pytest.fixture
def plan(tmp_path: Path, tiny_model: Path) -> PlanOf:
    """Makes the plan of a run with these changes."""
    pairs = [{"prompt": f"What is {n}?", "chosen": "Yes.", "rejected": "No."} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))

    def make(**changes: Any) -> Plan:
        settings = {
            "model": {"base": str(tiny_model), "load_in": "fp32", "max_length": 128},
            "data": {"sources": [{"path": str(tmp_path / "pairs.jsonl")}]},
            "store": str(tmp_path / "store"),
            **changes,
        }
        return make_plan(check_config(settings), load_registry())

    return make


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def in_production(store: ArtifactStore, call: StageCall) -> Path:
    """Publish what the call would make, without making it, and promote it."""
    with store.building(call.stage, call.key, Silent()) as building:
        (building.out / "weights").write_text("weights")
        artifact = building.publish(
            Manifest(
                kind=call.stage, key=call.key, version=1, config=call.config, parents=call.reads(), inputs=call.inputs
            )
        )
    promote(store, call.key, "production", by="", reason="")
    return artifact.path


def test_without_production_there_is_no_rival(plan: PlanOf) -> None:
    made = plan()
    assert (made.evaluate_production, made.over_production, made.ingest_production, made.gate) == (None,) * 4
    assert made.over_sft.reads() == {"policy": made.evaluate.key, "opponent": made.evaluate_sft.key}


def test_production_of_the_same_base_is_the_measurement_of_its_own_run(plan: PlanOf, store: ArtifactStore) -> None:
    first = plan(optimizer={"name": "dpo", "beta": 0.1})
    in_production(store, first.optimize)
    made = plan(optimizer={"name": "dpo", "beta": 0.2})
    assert made.evaluate_production is not None
    assert made.over_production is not None
    assert made.evaluate_production.key == first.evaluate.key
    assert made.evaluate_production.standing == {"policy": first.optimize.key}
    assert made.over_production.reads() == {"policy": made.evaluate.key, "opponent": first.evaluate.key}
    assert made.ingest_production is None
    assert made.evaluate.key != first.evaluate.key, "another model"
    # With another in production, the verdict is another, and what was measured of the model itself is not.
    assert plan(optimizer={"name": "dpo", "beta": 0.1}).evaluate.key == first.evaluate.key


def test_a_model_in_production_is_compared_with_itself(plan: PlanOf, store: ArtifactStore) -> None:
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
    """The same weights under a tokenizer that says something else."""
    shutil.copytree(tiny_model, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 256}))
    return folder


@pytest.fixture
def other(plan: PlanOf, store: ArtifactStore, tiny_model: Path, tmp_path: Path) -> Plan:
    """The plan of a run on another base, whose model is in production."""
    base = {"base": str(other_base(tiny_model, tmp_path / "other")), "load_in": "fp32", "max_length": 64}
    made = plan(model=base)
    in_production(store, made.optimize)
    return made


def test_production_of_another_base_answers_in_its_own_tokens(plan: PlanOf, other: Plan, tmp_path: Path) -> None:
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
    assert safety != made.ingest_safety.key, "the same prompts in other tokens"
    # Our reward model reads both as text; on our own base it has scored them as they were sampled.
    assert made.over_production.parents["reward"] == made.reward.key
    assert "reward" not in made.over_sft.parents


def test_production_whose_base_is_gone_or_changed_is_told(plan: PlanOf, other: Plan, tmp_path: Path) -> None:
    config = tmp_path / "other" / "tokenizer_config.json"
    config.write_text(config.read_text().replace("256", "257"))
    with pytest.raises(ArtifactError, match="base model of the model in production is no longer what it was trained"):
        plan()
    shutil.rmtree(tmp_path / "other")
    with pytest.raises(ModelError, match=r"there is no such folder\. got .*other"):
        plan()


def damage(folder: Path) -> None:
    (folder / "weights").write_text("wEights")


@pytest.mark.parametrize(
    ("harm", "paragraph"),
    [
        (damage, r"the model that `production` means is damaged: weights is not what manifest\.json says"),
        (shutil.rmtree, r"the artifact that `production` means is no longer in the store"),
        (lambda folder: (folder / "manifest.json").write_text("{"), r"is damaged: manifest\.json cannot be read"),
    ],
)
def test_production_that_is_not_whole_is_told(
    plan: PlanOf, store: ArtifactStore, harm: Callable[[Path], None], paragraph: str
) -> None:
    harm(in_production(store, plan().optimize))
    with pytest.raises(ArtifactError, match=paragraph):
        plan()


@pytest.mark.parametrize(
    ("changes", "paragraph"),
    [
        ({"gate": {}}, r"gate: the gate asks for a win rate, and nothing says which of two responses is better\. Set "),
        ({"gate": {"judge": "reward"}}, r"gate\.judge: this run has no such judge\. got reward"),
        (
            {"gate": {"win_rate_over_sft": None, "win_rate_over_production": None, "max_safety_drop": {"wordlist": 0}}},
            r"gate\.max_safety_drop: the gate asks for a score on the safety prompts that is not measured\. got wordl",
        ),
        (
            {"evaluation": {"evaluators": [{"name": "wordlist"}, {"name": "wordlist", "wanted": ["yes"]}]}},
            r"evaluation\.evaluators: an evaluator is chosen twice",
        ),
        (
            {"evaluation": {"endpoint": {"url": "http://me:secret@host/v1", "model": "m"}}},
            r"evaluation\.endpoint\.url: the address holds a password",
        ),
        (
            {"evaluation": {"endpoint": {"url": "localhost:8000/v1", "model": "m"}}},
            r"evaluation\.endpoint\.url: this is no address\. got localhost:8000/v1, expected one such as http",
        ),
        ({"evaluation": {"endpoint": {"url": "http://[::1", "model": "m"}}}, "this is no address"),
    ],
)
def test_rules_that_could_never_be_applied_are_told_before_anything_runs(
    plan: PlanOf, changes: dict[str, Any], paragraph: str
) -> None:
    with pytest.raises(ConfigError, match=paragraph):
        plan(**changes)


def test_judges_in_the_order_in_which_the_gate_asks_them(plan: PlanOf) -> None:
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
    # Where the endpoint is reached, and how, decides nothing.
    one, two = (plan(evaluation={"endpoint": {**endpoint, **more}}).over_sft for more in ({}, {"timeout_seconds": 6}))
    assert one.key == two.key
    assert plan(evaluation={"endpoint": {**endpoint, "model": "n"}}).over_sft.key != one.key


def test_second_reward_model_and_everything_else_learn_from_different_prompts(plan: PlanOf) -> None:
    made = plan(evaluation={"judge_fraction": 0.25, "reward_model": True})
    assert made.judge is not None
    assert made.reward is not None
    assert made.reference is not None
    assert made.judge.config["fold"] == {"judge_fraction": 0.25, "part": "judge"}
    for call in (made.reward, made.reference, made.optimize):
        assert call.config["fold"] == {"judge_fraction": 0.25, "part": "rest"}
    assert "fold" not in plan().optimize.config


def test_every_error_here_is_one_that_the_command_prints(plan: PlanOf) -> None:
    with pytest.raises(AlignmentError) as caught:
        plan(gate={})
    assert caught.value.exit_code == 2
