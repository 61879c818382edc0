"""The gate: the sign of every rule, what is not measured, and what a verdict leads to."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stored import A, B, D, add

from alignment_core.artifacts import Artifact, ArtifactStore
from alignment_core.artifacts.catalogue import promote, roll_back
from alignment_core.config import GateConfig
from alignment_core.evaluation.gate import Comparison, decide
from alignment_core.evaluation.promotion import apply_verdict
from alignment_core.evaluation.win_rate import win_rate

OFF: dict[str, Any] = {"win_rate_over_sft": None, "win_rate_over_production": None}
BETTER = Comparison(win_rate([1] * 20).low, length_ratio=0.8, perplexity_ratio=0.9, safety={"rule": 0.3})
"""What is measured of the better of two models."""
WORSE = Comparison(win_rate([-1] * 20).low, length_ratio=1 / 0.8, perplexity_ratio=1 / 0.9, safety={"rule": -0.3})
"""The same two models, swapped."""
ITSELF = Comparison(win_rate([0] * 20).low, length_ratio=1.0, perplexity_ratio=1.0, safety={"rule": 0.0})

RULES = {
    "win rate over SFT": {**OFF, "win_rate_over_sft": 0.5},
    "win rate over production": {**OFF, "win_rate_over_production": 0.5},
    "length": {**OFF, "max_length_ratio": 1.1},
    "perplexity": {**OFF, "max_perplexity_ratio": 1.05},
    "safety": {**OFF, "max_safety_drop": {"rule": 0.1}},
}


@pytest.mark.parametrize("rule", RULES)
def test_swapped_models_turn_the_verdict_round(rule: str) -> None:
    gate = GateConfig(**RULES[rule])
    assert decide(gate, 0.0, BETTER, BETTER).passed
    assert not decide(gate, 0.0, WORSE, WORSE).passed


def test_kl_has_a_ceiling() -> None:
    gate = GateConfig(**OFF, max_kl=2.0)
    assert [decide(gate, kl, BETTER, None).passed for kl in (0.0, 2.0, 2.1, math.nan, None)] == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_model_beside_itself_does_not_pass() -> None:
    assert not decide(GateConfig(), 0.0, ITSELF, None).passed
    assert not decide(GateConfig(), 0.0, BETTER, ITSELF).passed


@pytest.mark.parametrize("rule", ["win rate over SFT", "length", "perplexity", "safety"])
def test_what_is_not_measured_does_not_pass(rule: str) -> None:
    verdict = decide(GateConfig(**RULES[rule]), 0.0, Comparison(), None)
    assert not verdict.passed
    assert verdict.reasons[0].endswith("not measured")


def test_without_production_its_rules_are_not_applied() -> None:
    assert decide(GateConfig(), None, BETTER, None).passed
    assert len(decide(GateConfig(), None, BETTER, None).checks) == 1


def test_reasons_are_of_what_failed() -> None:
    verdict = decide(GateConfig(max_kl=1, max_length_ratio=1), 3.0, BETTER, None)
    assert verdict.reasons == ["failed: KL from the reference, nats per response, at most 1: 3"]


def test_one_lucky_prompt_is_not_enough() -> None:
    assert not decide(GateConfig(), 0.0, replace(BETTER, low=win_rate([1]).low), None).passed


# --- what a verdict leads to --------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    store = ArtifactStore(tmp_path)
    for key in (A, B, D):
        add(store, key)
    return store


def judged(store: ArtifactStore, key: str, *, passed: bool = True, production: str | None = None, **more: bool) -> Any:
    verdict = {"passed": passed, "reasons": ["why"], "production": production}
    to_production = more.get("to_production", True)
    return apply_verdict(store, Artifact("optimize", key, ""), verdict, to_production=to_production, by="run")


def meant(store: ArtifactStore) -> dict[str, str]:
    return {name: store.aliases.history(name)[-1].key for name in store.aliases.names()}


def test_model_that_does_not_pass_gets_no_name(store: ArtifactStore) -> None:
    assert judged(store, A, passed=False).aliases == ()
    assert meant(store) == {}


def test_model_that_passes_is_candidate_and_goes_to_production_only_if_asked(store: ArtifactStore) -> None:
    assert judged(store, A, to_production=False).aliases == ("candidate",)
    assert meant(store) == {"candidate": A}
    assert judged(store, A).aliases == ("candidate", "production")
    assert meant(store) == {"candidate": A, "production": A}
    assert store.aliases.history("production")[0].reason == "why"


def test_model_that_was_compared_with_another_does_not_replace_the_one_there_now(store: ArtifactStore) -> None:
    promote(store, A, "production", by="", reason="")
    found = judged(store, D, production=B)
    assert found.aliases == ("candidate",)
    assert "changed by somebody else meanwhile" in found.reasons[-1]
    assert meant(store)["production"] == A
    assert judged(store, D, production=A).aliases == ("candidate", "production")


def test_model_that_was_rolled_back_does_not_come_back_by_itself(store: ArtifactStore) -> None:
    promote(store, A, "production", by="", reason="")
    judged(store, B, production=A)
    roll_back(store, "production", by="ann", reason="rude")
    found = judged(store, B, production=A)
    assert found.aliases == ("candidate",)
    assert "rolled back" in found.reasons[-1]
    assert meant(store)["production"] == A
    # A person may, and after that the gate does not stand in the way of others.
    promote(store, B, "production", by="ann", reason="not so rude")
    assert judged(store, D, production=B).aliases == ("candidate", "production")


def test_model_in_production_is_told_as_such(store: ArtifactStore) -> None:
    assert judged(store, A, passed=False, production=A).reasons[0] == "it is the model in production"
