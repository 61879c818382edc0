"""The rules of the adviser: each one at its threshold, on either side, and what it tells to change."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import pytest
from pydantic import BaseModel

from alignment_core.advice import RULES, advise
from alignment_core.config import PipelineConfig, StepSettings
from alignment_core.config.learning_rates import distance, suitable_rate
from alignment_core.plugin_api import Advice, AlignmentOptimizer
from alignment_core.training.loop import learning_rate_factor
from alignment_plugins.dpo import DPO
from alignment_plugins.kto import KTO

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "advice.md"


class Plain(AlignmentOptimizer):
    """An optimizer that says nothing of its own."""

    name: Literal["plain"] = "plain"


class Held(Plain):
    kl_setting: ClassVar[str | None] = "tether"


def rules(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [one.rule for one in advise(metrics, Plain())]


def only(metrics: Mapping[str, Mapping[str, Any]], optimizer: AlignmentOptimizer | None = None) -> Advice:
    (one,) = advise(metrics, optimizer or Plain())
    return one


def rate(share: float, low: float, high: float) -> dict[str, float]:
    return {"rate": share, "low": low, "high": high}


def test_nothing_measured_gives_no_advice() -> None:
    assert advise({}, Plain()) == []
    assert advise({"optimize": {}, "evaluate": {"prompts": None}, "reward": {}, "ingest": {}}, Plain()) == []


@pytest.mark.parametrize(
    ("metrics", "rule"),
    [
        ({"evaluate": {"kl": 25.0}}, None),
        ({"evaluate": {"kl": 25.1}}, "kl-runs-away"),
        ({"evaluate": {"kl": 0.1}}, None),
        ({"evaluate": {"kl": 0.09}}, "hardly-moved"),
        ({"over_sft": {"length_ratio": 1.25}}, None),
        ({"over_sft": {"length_ratio": 1.26}}, "length-drifts"),
        ({"over_sft": {"length_ratio": 0.8}}, None),
        ({"over_sft": {"length_ratio": 0.79}}, "length-drifts"),
        ({"over_sft": {"win_rate": {"a": rate(0.4, 0.3, 0.5)}}}, None),
        ({"over_sft": {"win_rate": {"a": rate(0.4, 0.3, 0.49)}}}, "worse-than-start"),
        ({"optimize": {"steps": 20, "loss": 1.0}}, None),  # 1e-4 · 20 · 0.545 = 0.00109
        ({"optimize": {"steps": 19, "loss": 1.0}}, "few-steps"),  # 1e-4 · 19 · 0.545 = 0.00104
        ({"evaluate": {"prompts": 50}}, None),
        ({"evaluate": {"prompts": 49}}, "few-held-out-prompts"),
        ({"ingest": {"raters": {"count": 0}}}, None),
        ({"ingest": {"raters": {"count": 1, "largest": 1.0}}}, None),
        ({"ingest": {"raters": {"count": 2, "largest": 0.5}}}, None),
        ({"ingest": {"raters": {"count": 3, "largest": 0.51}}}, "one-rater"),
        ({"evaluate": {"reward_orders_as_rule": 0.55}}, None),
        ({"evaluate": {"reward_orders_as_rule": 0.54}}, "judges-disagree"),
        ({"sft": {"loss": 2.0, "held_out_loss": 2.25}}, None),
        ({"sft": {"loss": 2.0, "held_out_loss": 2.31}}, "worse-on-held-out"),
    ],
)
def test_thresholds(metrics: dict[str, dict[str, Any]], rule: str | None) -> None:
    assert rules(metrics) == ([] if rule is None else [rule])


def held_out(pairs: int, share: float, **more: float) -> dict[str, dict[str, Any]]:
    rows = {"rows": {"held_out": {"preferences": pairs}}}
    return {"ingest": rows, "reward": {"held_out_accuracy": share, **more}}


def test_how_many_pairs_tell_a_reward_model_from_chance() -> None:
    """The 95 % interval of 100 fair coins reaches 0.5 + 1.96 * 0.05 = 0.598, that of 25 coins 0.5 + 1.96 * 0.1."""
    assert rules(held_out(100, 0.59)) == ["reward-at-chance"]
    assert rules(held_out(100, 0.60)) == []
    assert rules(held_out(25, 0.69)) == ["reward-at-chance"]
    assert rules(held_out(25, 0.70)) == []
    ranked = {**held_out(50, 0.6), "rank": {"rows": {"held_out": {"preferences": 50}}}}
    assert rules(ranked) == [], "the pairs of a ranking count as well"


def test_memorized_pairs_are_told_from_noise() -> None:
    """The share 0.8 of 25 pairs is uncertain by 1.96 * sqrt(0.8 * 0.2 / 25) = 0.157, that of 400 pairs by 0.039."""
    assert rules(held_out(25, 0.8, accuracy=0.95)) == []
    assert rules(held_out(25, 0.8, accuracy=0.96)) == ["worse-on-held-out"]
    assert rules(held_out(400, 0.8, accuracy=0.9)) == []
    assert rules(held_out(400, 0.8, accuracy=0.91)) == ["worse-on-held-out"]


def test_few_prompts_do_not_matter_where_the_win_rate_is_decided() -> None:
    undecided = {"evaluate": {"prompts": 25}, "over_sft": {"win_rate": {"a": rate(0.6, 0.4, 0.8)}}}
    one = only(undecided)
    assert "±20 points" in one.meaning, "1.96 * sqrt(0.25 / 25) = 0.196"
    assert rules({**undecided, "over_sft": {"win_rate": {"a": rate(0.9, 0.7, 0.99)}}}) == []
    assert rules({**undecided, "over_sft": {"win_rate": {}}}) == [], "nothing judges, so there is no win rate"


@pytest.mark.parametrize(("there", "do"), [(25, "data.held_out_fraction"), (26, "evaluation.max_prompts")])
def test_what_limits_the_prompts_is_named(there: int, do: str) -> None:
    rows = {"rows": {"held_out": {"prompts": there}}}
    assert do in only({"evaluate": {"prompts": 25}, "ingest": rows}).do


def test_reward_model_and_judge_that_disagree() -> None:
    def versus(**judge: Any) -> list[str]:
        return rules({"over_sft": {"win_rate": {"reward": rate(0.7, 0.6, 0.8), "rule": judge}}})

    assert versus(**rate(0.49, 0.4, 0.6)) == ["judges-disagree"]
    assert versus(**rate(0.5, 0.4, 0.6)) == []
    unsure = {"reward": rate(0.7, 0.5, 0.8), "rule": rate(0.4, 0.3, 0.6)}
    assert rules({"over_sft": {"win_rate": unsure}}) == []
    one = only({"over_sft": {"win_rate": {"reward": rate(0.7, 0.6, 0.8), "rule": rate(0.4, 0.3, 0.6)}}})
    assert "(70 %), and `rule` the old ones (60 %)" in one.finding


def test_raters_are_counted_in_whole_numbers() -> None:
    """A plan knows their number as a float."""
    assert only({"ingest": {"raters": {"count": 2.0, "largest": 0.8}}}).finding.startswith("One of 2 raters gave 80 %")


def test_a_worse_model_is_not_to_be_held_closer_if_it_hardly_moved() -> None:
    """Otherwise one advice would lower the learning rate, and the next one raise it."""
    worse = {"over_sft": {"win_rate": {"reward": rate(0.2, 0.1, 0.4)}}}
    one = only({**worse, "evaluate": {"kl": 3.0}}, Held())
    assert one.finding.startswith("The reward model prefers the model that training started from")
    look = "look at the answers side by side in the report"
    assert one.do == f"raise `optimizer.tether` or lower `optimizer.learning_rate`, and {look}"
    near = advise({**worse, "evaluate": {"kl": 0.05}}, Held())
    assert [each.rule for each in near] == ["worse-than-start", "hardly-moved"]
    assert near[0].do == look


def test_the_setting_that_holds_the_policy_is_the_optimizers_own() -> None:
    far = {"evaluate": {"kl": 40.0}}
    assert only(far, Held()).do == "raise `optimizer.tether` or lower `optimizer.learning_rate`"
    assert only(far).do == "lower `optimizer.learning_rate`"


def test_steps_that_are_too_small_are_found_before_the_run() -> None:
    slow = Plain(learning_rate=1e-5, schedule="constant", warmup_fraction=0)
    assert rules({"optimize": {"steps": 100}}) == []  # 1e-4 · 100 · 0.545
    assert advise({"optimize": {"steps": 100}}, slow) == []  # just 0.001
    found = only({"optimize": {"steps": 99}}, slow)
    assert found.rule == "small-steps"
    assert "99 steps with learning rates up to 1e-05" in found.finding
    assert "to about 0.0001 " in found.do  # 0.01 / 99
    # Of few steps, one rule speaks, and names a larger rate only if there is one.
    assert "`optimizer.learning_rate` to about 0.001" in only({"optimize": {"steps": 10}}).do
    assert "learning_rate" not in only({"optimize": {"steps": 1}}, Plain(learning_rate=1e-3)).do


@pytest.mark.parametrize(
    ("settings", "steps", "factor", "rate"),
    [
        ({"schedule": "constant", "warmup_fraction": 0}, 10, 1.0, 1e-3),
        ({"schedule": "constant", "warmup_fraction": 0}, 25, 1.0, 4e-4),
        ({"schedule": "linear", "warmup_fraction": 0}, 100, 0.5, 2e-4),
        ({"schedule": "cosine", "warmup_fraction": 0}, 2000, 0.55, 9e-6),
        ({"schedule": "linear", "warmup_fraction": 0.5}, 100, 0.5, 2e-4),
        ({"schedule": "constant", "warmup_fraction": 0}, 1, 1.0, 1e-3),  # never more
    ],
)
def test_the_sum_of_the_learning_rates(settings: dict[str, Any], steps: int, factor: float, rate: float) -> None:
    optimizer = Plain(learning_rate=1.0, **settings)
    # The loop's own learning rates, added up. A warmup of few steps ends early: within one step.
    loop = sum(
        learning_rate_factor(i, steps, schedule=optimizer.schedule, warmup_fraction=optimizer.warmup_fraction)
        for i in range(steps)
    )
    assert distance(optimizer, steps) == pytest.approx(steps * factor)
    assert loop == pytest.approx(steps * factor, abs=1.01)
    assert suitable_rate(optimizer, steps) == pytest.approx(rate)


def test_steps_of_a_planned_run_are_in_the_present() -> None:
    assert only({"optimize": {"steps": 3}}).finding == "The optimizer makes only 3 steps"
    assert only({"optimize": {"steps": 3, "loss": 0.7}}).finding == "The optimizer made only 3 steps"


def test_an_optimizers_own_advice_comes_last_and_its_faults_are_shown() -> None:
    class Speaking(Plain):
        def advice(self, trained: Mapping[str, Any], evaluated: Mapping[str, Any]) -> list[Advice]:
            return [Advice("own", f"{trained['loss']} {evaluated['kl']}", "", "", "")]

    class Faulty(Plain):
        def advice(self, trained: Mapping[str, Any], evaluated: Mapping[str, Any]) -> list[Advice]:
            raise KeyError("entropy")

    class Wrong(Plain):
        def advice(self, trained: Mapping[str, Any], evaluated: Mapping[str, Any]) -> Any:
            return ["lower the learning rate"]

    metrics = {"optimize": {"loss": 1.5, "steps": 19}, "evaluate": {"kl": 2.5}}
    assert [(one.rule, one.finding[:7]) for one in advise(metrics, Speaking())] == [
        ("few-steps", "The opt"), ("own", "1.5 2.5"),
    ]  # fmt: skip
    assert "KeyError: 'entropy'" in advise(metrics, Faulty())[-1].finding
    assert "it does not return a list of advice. got str" in advise(metrics, Wrong())[-1].finding


def named_settings(file: Path) -> set[str]:
    """Return the settings that a source file names in backticks, such as `reward.epochs`."""
    text = file.read_text(encoding="utf-8")
    return set(re.findall(r"`((?:optimizer|reward|sft|gate|evaluation|data)\.[a-z_.\[\]]+)`", text))


def is_setting(path: str, optimizer: type[BaseModel]) -> bool:
    """Return whether a run has the setting, or the optimizer if it is one of `optimizer`."""
    models: list[type[BaseModel]] = [PipelineConfig]
    for part in path.replace("[]", "").split("."):
        found = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        if not found:
            return False
        models = [optimizer] if part == "optimizer" else [each for one in found for each in models_in(one)]
    return True


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in models_in(inner)]


@pytest.mark.parametrize(
    ("source", "optimizer"),
    [
        ("alignment_core/advice/rules.py", StepSettings),
        ("plugins/alignment_plugins/dpo.py", DPO),
        ("plugins/alignment_plugins/kto.py", KTO),
    ],
)
def test_advice_names_settings_that_exist(source: str, optimizer: type[BaseModel]) -> None:
    """What every optimizer is told names settings that every optimizer has."""
    named = named_settings(PAGE.parents[2] / source)
    assert named
    assert {path for path in named if not is_setting(path, optimizer)} == set()


def test_settings_that_do_not_exist_are_found() -> None:
    assert is_setting("data.sources[].weight", StepSettings)
    assert not is_setting("data.sources[].wait", StepSettings)
    assert not is_setting("reward.epoch", StepSettings)
    assert not is_setting("optimizer.beta", StepSettings)


def test_the_page_names_every_rule_and_its_source() -> None:
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| .* \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    for rule in RULES:
        assert rule.source in rows[rule.name]
