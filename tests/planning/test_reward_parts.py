"""What rewards responses decides which stages a run has and what enters their keys. Mistakes are found in the plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment_core.config import PipelineConfig
from alignment_core.errors import AlignmentError, ConfigError, PluginError
from alignment_core.planning.pipeline import Plan, plan_pipeline
from alignment_core.registry import load_registry

Plans = Callable[..., Plan]
NUMBER = {"name": "numeric_match"}


@pytest.fixture
def plan(tiny_model: Path, tmp_path: Path) -> Plans:
    row = {"prompt": "What is 1 plus 1?", "chosen": "It is 2.", "rejected": "No.", "total": "2"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")

    def make(by: Any = None, keep: tuple[str, ...] = (), optimizer: str = "ppo", **changes: Any) -> Plan:
        reward = {} if by is None else {"by": by}
        settings = {
            "model": {"base": str(tiny_model), "load_in": "fp32", "max_length": 128},
            "data": {"sources": [{"path": str(tmp_path / "pairs.jsonl"), "keep": list(keep)}]},
            "reward": reward | changes.pop("reward", {}),
            "optimizer": {"name": optimizer},
            **changes,
        }
        return plan_pipeline(PipelineConfig.model_validate(settings), load_registry())

    return make


def test_the_reward_model_is_the_default(plan: Plans) -> None:
    made = plan()
    assert made.reward is not None
    assert made.optimize.parents["reward"] == made.reward.key
    assert made.optimize.config["reward"] == {
        "by": [{"name": "reward_model", "weight": 1.0}],
        "normalise": True,
        "clip": None,
    }
    assert plan([{"name": "reward_model"}]).optimize.key == made.optimize.key


def test_no_reward_model_is_built_unless_it_counts(plan: Plans) -> None:
    made = plan([NUMBER], keep=("answer",))
    assert made.reward is None
    assert "reward" not in made.optimize.parents
    assert made.evaluate.config["evaluators"] == []
    mixed = plan([NUMBER, {"name": "reward_model", "weight": 0.5}], keep=("answer",))
    assert mixed.reward is not None
    assert mixed.optimize.parents["reward"] == mixed.reward.key
    judged = plan([NUMBER], keep=("answer",), evaluation={"reward_model": True})
    assert judged.reward is not None
    assert "reward" not in judged.optimize.parents
    assert judged.evaluate.parents["reward"] == judged.reward.key


def test_keys_follow_the_reward(plan: Plans) -> None:
    first = plan([NUMBER], keep=("answer",))
    others = [
        plan([NUMBER | {"weight": 2}], keep=("answer",)),
        plan([NUMBER | {"tolerance": 0.1}], keep=("answer",)),
        plan([NUMBER], keep=("answer",), reward={"clip": 3}),
        plan([NUMBER], keep=("answer",), reward={"normalise": False}),
        plan([NUMBER, {"name": "repetition"}], keep=("answer",)),
    ]
    assert len({made.optimize.key for made in (first, *others)}) == 6
    assert {made.sft.key for made in others if made.sft} == {first.sft.key if first.sft else ""}
    # Settings of the reward model do not concern a run without one, nor the reward the reward model.
    assert plan([NUMBER], keep=("answer",), reward={"epochs": 3}).optimize.key == first.optimize.key
    mixed, plain = plan([NUMBER, {"name": "reward_model"}], keep=("answer",)), plan(keep=("answer",))
    assert mixed.reward is not None
    assert plain.reward is not None
    assert mixed.reward.key == plain.reward.key


def test_optimizers_without_rewards_ignore_the_section(plan: Plans) -> None:
    assert plan([NUMBER], optimizer="dpo").optimize.key == plan(optimizer="dpo").optimize.key


def test_kept_columns_enter_the_key_of_the_data(plan: Plans) -> None:
    assert plan(keep=("total",)).ingest.key != plan().ingest.key


BAD = [
    ([{"name": "numeric_mtach"}], PluginError, r"reward\.by\.0\.name: no installed evaluator .* got numeric_mtach"),
    ([NUMBER | {"tolerence": 1}], ConfigError, r"reward\.by\.0\.tolerence"),
    ([{"weight": 1}], ConfigError, r"reward\.by\.0\.name: this setting is missing"),
    ([NUMBER | {"weight": 0}], ConfigError, r"reward\.by\.0\.weight: .*other than 0"),
    ([NUMBER | {"weight": True}], ConfigError, r"reward\.by\.0\.weight"),
    ([NUMBER | {"weight": "1"}], ConfigError, r"reward\.by\.0\.weight"),
    ([{"name": "reward_model"}, {"name": "reward_model"}], ConfigError, "occurs twice"),
    ([{"name": "reward_model", "epochs": 2}], ConfigError, r"no settings here. got epochs"),
]


@pytest.mark.parametrize(("by", "error", "message"), BAD)
def test_mistakes_are_found_in_the_plan(plan: Plans, by: Any, error: type[AlignmentError], message: str) -> None:
    with pytest.raises(error, match=message):
        plan(by, keep=("answer",))


def test_an_evaluator_whose_column_is_not_kept_is_refused(plan: Plans) -> None:
    with pytest.raises(ConfigError, match=r"reward\.by\.0: .*no kept columns, expected answer.*keep: \[answer\]"):
        plan([NUMBER])
    with pytest.raises(ConfigError, match=r"evaluation\.evaluators\.0: .*got kept columns total, expected answer"):
        plan(keep=("total",), optimizer="dpo", evaluation={"evaluators": [NUMBER]})
    with pytest.raises(ConfigError, match=r"rank\.by: "):
        plan(optimizer="dpo", sample={}, rank={"by": NUMBER})
    assert plan([NUMBER | {"fact": "total.value"}], keep=("total",)).reward is None
