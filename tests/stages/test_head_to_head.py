"""The comparison of two evaluated models and the gate: each metric favors the better model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alignment_core.artifacts import ArtifactStore, Manifest, key_of
from alignment_core.errors import DataError
from alignment_core.execution.build import StageResult, build
from alignment_core.execution.stage import Runtime, StageCall
from alignment_core.planning.stage_calls import VERSIONS
from alignment_core.progress import Silent

PROMPTS = tuple(f"What is {n}?" for n in range(12))


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def lines(prompts: Sequence[str], response: str, **scores: float) -> str:
    asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return "".join(json.dumps({"prompt": prompt, "response": response, **scores}) + "\n" for prompt in asked)


def evaluated(
    store: ArtifactStore,
    name: str,
    responses: str,
    *,
    safety: str = "",
    tokenizer: str = "one",
    **metrics: float,
) -> str:
    """Publish an evaluation with these lines of `responses.jsonl` and return its key."""
    config = {"name": name, "tokenizer": tokenizer}
    key = key_of(stage="evaluate", version=1, config=config, parents={})
    with store.building("evaluate", key, Silent()) as building:
        (building.out / "responses.jsonl").write_text(responses)
        if safety:
            (building.out / "safety.jsonl").write_text(safety)
        building.publish(Manifest(kind="evaluate", key=key, version=1, config=config, parents={}, metrics=metrics))
    return key


def build_stage(store: ArtifactStore, stage: str, config: dict[str, Any], parents: dict[str, str]) -> StageResult:
    key = key_of(stage=stage, version=VERSIONS[stage], config=config, parents=parents)
    runtime = Runtime(store=store.root, isolation="inline")
    return build(
        StageCall(stage=stage, key=key, label=stage, config=config, parents=parents, inputs={}, runtime=runtime),
        Silent(),
    )


def versus(
    store: ArtifactStore, policy: str, opponent: str, *judges: str, evaluators: Sequence[str] = ()
) -> StageResult:
    config = {"judges": list(judges), "evaluators": list(evaluators), "seed": 0}
    return build_stage(store, "head_to_head", config, {"policy": policy, "opponent": opponent})


def gate(store: ArtifactStore, policy: str, sft: str, production: str | None = None, **rules: Any) -> dict[str, Any]:
    """Run the gate with the evaluator `rule` as judge and return its metrics."""
    parents = {"policy": policy, "over_sft": versus(store, policy, sft, "rule", evaluators=["rule"]).artifact.key}
    if production is not None:
        found = versus(store, policy, production, "rule", evaluators=["rule"])
        parents["over_production"] = found.artifact.key
    return build_stage(store, "gate", {"gate": rules, "judge": "rule", "production": None}, parents).metrics


@pytest.fixture
def good(store: ArtifactStore) -> str:
    text = lines(PROMPTS, "four", rule=1.0)
    return evaluated(store, "good", text, safety=lines(PROMPTS[:3], "no", rule=1.0), kl=0.5, perplexity=4.0)


@pytest.fixture
def bad(store: ArtifactStore) -> str:
    text = lines(PROMPTS, "eightfold", rule=0.0)
    return evaluated(store, "bad", text, safety=lines(PROMPTS[:3], "yes", rule=0.25), kl=3.0, perplexity=5.0)


def test_metrics_match_hand_computed_values(store: ArtifactStore, good: str, bad: str) -> None:
    metrics = versus(store, good, bad, "rule", evaluators=["rule"]).metrics
    assert (metrics["prompts"], metrics["unmatched_prompts"]) == (12, 0)
    # "four" has 4 letters, "eightfold" has 9
    assert metrics["length_ratio"] == pytest.approx(4 / 9)
    assert metrics["perplexity_ratio"] == pytest.approx(4 / 5)
    rate = metrics["win_rate"]["rule"]
    assert (rate["wins"], rate["ties"], rate["losses"], rate["low"]) == (12, 0, 0, pytest.approx(0.025 ** (1 / 12)))
    assert metrics["safety"]["rule"]["difference"] == 0.75


def test_swapping_the_models_inverts_the_metrics(store: ArtifactStore, good: str, bad: str) -> None:
    one = versus(store, good, bad, "rule", evaluators=["rule"]).metrics
    other = versus(store, bad, good, "rule", evaluators=["rule"]).metrics
    assert other["length_ratio"] == pytest.approx(1 / one["length_ratio"])
    assert other["perplexity_ratio"] == pytest.approx(1 / one["perplexity_ratio"])
    assert other["safety"]["rule"]["difference"] == -one["safety"]["rule"]["difference"]
    assert other["win_rate"]["rule"]["high"] == pytest.approx(1 - one["win_rate"]["rule"]["low"])


RULES: dict[str, dict[str, Any]] = {
    "win rate": {},
    "kl": {"win_rate_over_sft": None, "win_rate_over_production": None, "max_kl": 1.0},
    "length": {"win_rate_over_sft": None, "win_rate_over_production": None, "max_length_ratio": 1.0},
    "perplexity": {"win_rate_over_sft": None, "win_rate_over_production": None, "max_perplexity_ratio": 1.0},
    "safety": {"win_rate_over_sft": None, "win_rate_over_production": None, "max_safety_drop": {"rule": 0.0}},
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_passes_only_the_better_model(store: ArtifactStore, good: str, bad: str, rule: str) -> None:
    assert gate(store, good, bad, bad, **RULES[rule])["passed"]
    found = gate(store, bad, good, good, **RULES[rule])
    assert not found["passed"]
    assert all(reason.startswith("failed: ") for reason in found["reasons"])


def test_model_compared_with_itself_is_not_promoted(store: ArtifactStore, good: str, bad: str) -> None:
    assert not gate(store, good, good)["passed"]
    assert not gate(store, good, bad, good)["passed"], "the model is already in production"


def test_equal_responses_are_a_tie_although_their_scores_were_rounded_differently(store: ArtifactStore) -> None:
    same = [
        evaluated(store, name, lines(PROMPTS, "four", rule=1.0 + rounded)) for name, rounded in (("a", 0), ("b", 1e-7))
    ]
    rate = versus(store, *same, "rule").metrics["win_rate"]["rule"]
    assert (rate["wins"], rate["ties"], rate["losses"]) == (0, len(PROMPTS), 0)


def test_models_with_different_tokenizers_are_compared_on_text(store: ArtifactStore, good: str) -> None:
    other = evaluated(store, "other", lines(reversed(PROMPTS[3:]), "five", rule=0.0), tokenizer="two", perplexity=1.0)  # type: ignore[arg-type]
    metrics = versus(store, good, other, "rule").metrics
    assert (metrics["prompts"], metrics["unmatched_prompts"]) == (9, 3)
    assert metrics["win_rate"]["rule"]["wins"] == 9
    assert "perplexity_ratio" not in metrics, "nats per token of different tokenizers are not comparable"


def test_a_prompt_that_occurs_twice_is_compared_twice(store: ArtifactStore) -> None:
    twice = lines(["Hi"], "a", rule=1.0) + lines(["Hi"], "b", rule=0.0)
    first, second = evaluated(store, "1", twice), evaluated(store, "2", twice + lines(["Hi"], "c", rule=5.0))
    built = versus(store, first, second, "rule")
    assert (built.metrics["prompts"], built.metrics["unmatched_prompts"]) == (2, 1)
    assert built.metrics["win_rate"]["rule"]["ties"] == 2


def test_no_prompt_in_common_is_reported(store: ArtifactStore, good: str) -> None:
    other = evaluated(store, "other", lines(["Else?"], "x", rule=0.0))
    with pytest.raises(DataError, match="the two models have no prompt in common"):
        versus(store, good, other, "rule")


def test_other_metrics_need_no_judge_or_demonstrations(store: ArtifactStore) -> None:
    one, two = evaluated(store, "1", lines(PROMPTS, "ab")), evaluated(store, "2", lines(PROMPTS, ""))
    assert versus(store, one, two).metrics == {
        "prompts": 12, "unmatched_prompts": 0, "win_rate": {}, "warnings": [],
    }  # fmt: skip
    assert versus(store, two, one).metrics["length_ratio"] == 0


def test_verdicts_are_written_with_both_responses(store: ArtifactStore, good: str, bad: str) -> None:
    built = versus(store, good, bad, "rule")
    first = json.loads((built.artifact.path / "verdicts.jsonl").read_text().splitlines()[0])
    assert first == {
        "prompt": [{"role": "user", "content": "What is 0?"}],
        "response": "four",
        "opponent": "eightfold",
        "verdicts": {"rule": 1},
    }
