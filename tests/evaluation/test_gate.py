"""The gate: the sign of every rule, missing measurements, and the aliases that a verdict sets."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stored import add, named

from alignment_core.artifacts import Artifact, ArtifactStore
from alignment_core.artifacts.models import promote, rollback
from alignment_core.config import GateConfig
from alignment_core.evaluation.gate import Comparison, decide
from alignment_core.evaluation.promotion import apply_verdict
from alignment_core.evaluation.win_rate import win_rate

A = named("a")
B = named("b")
D = named("d")

OFF: dict[str, Any] = {"win_rate_over_sft": None, "win_rate_over_production": None}
BETTER = Comparison(win_rate([1] * 20).low, length_ratio=0.8, perplexity_ratio=0.9, safety={"rule": 0.3})
"""The measurements of the better of two models."""
WORSE = Comparison(win_rate([-1] * 20).low, length_ratio=1 / 0.8, perplexity_ratio=1 / 0.9, safety={"rule": -0.3})
"""The measurements with the two models swapped."""
ITSELF = Comparison(win_rate([0] * 20).low, length_ratio=1.0, perplexity_ratio=1.0, safety={"rule": 0.0})

RULES = {
    "win rate over SFT": {**OFF, "win_rate_over_sft": 0.5},
    "win rate over production": {**OFF, "win_rate_over_production": 0.5},
    "length": {**OFF, "max_length_ratio": 1.1},
    "perplexity": {**OFF, "max_perplexity_ratio": 1.05},
    "safety": {**OFF, "max_safety_drop": {"rule": 0.1}},
}


@pytest.mark.parametrize("rule", RULES)
def test_swapped_models_reverse_the_verdict(rule: str) -> None:
    gate = GateConfig(**RULES[rule])
    assert decide(gate, 0.0, BETTER, BETTER).passed
    assert not decide(gate, 0.0, WORSE, WORSE).passed


def test_kl_has_an_upper_limit() -> None:
    gate = GateConfig(**OFF, max_kl=2.0)
    assert [decide(gate, kl, BETTER, None).passed for kl in (0.0, 2.0, 2.1, math.nan, None)] == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_model_compared_with_itself_does_not_pass() -> None:
    assert not decide(GateConfig(), 0.0, ITSELF, None).passed
    assert not decide(GateConfig(), 0.0, BETTER, ITSELF).passed


@pytest.mark.parametrize("rule", ["win rate over SFT", "length", "perplexity", "safety"])
def test_missing_measurement_does_not_pass(rule: str) -> None:
    verdict = decide(GateConfig(**RULES[rule]), 0.0, Comparison(), None)
    assert not verdict.passed
    assert verdict.reasons[0].endswith("not measured")


def test_without_production_its_rules_are_not_applied() -> None:
    assert decide(GateConfig(), None, BETTER, None).passed
    assert len(decide(GateConfig(), None, BETTER, None).checks) == 1


def test_reasons_list_the_failed_rules() -> None:
    verdict = decide(GateConfig(max_kl=1, max_length_ratio=1), 3.0, BETTER, None)
    assert verdict.reasons == ["failed: the KL from the reference in nats per response must be at most 1, measured 3"]


def test_one_lucky_prompt_is_not_enough() -> None:
    assert not decide(GateConfig(), 0.0, replace(BETTER, low=win_rate([1]).low), None).passed


# --- applying a verdict -------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    store = ArtifactStore(tmp_path)
    for key in (A, B, D):
        add(store, key)
    return store


def apply(store: ArtifactStore, key: str, *, passed: bool = True, production: str | None = None, **more: bool) -> Any:
    verdict = {"passed": passed, "reasons": ["why"], "production": production}
    to_production = more.get("to_production", True)
    return apply_verdict(store, Artifact("optimize", key, ""), verdict, to_production=to_production, by="run")


def current_aliases(store: ArtifactStore) -> dict[str, str]:
    return {name: store.aliases.history(name)[-1].key for name in store.aliases.names()}


def test_model_that_does_not_pass_gets_no_alias(store: ArtifactStore) -> None:
    assert apply(store, A, passed=False).aliases == ()
    assert current_aliases(store) == {}


def test_model_that_passes_is_candidate_and_goes_to_production_only_if_asked(store: ArtifactStore) -> None:
    assert apply(store, A, to_production=False).aliases == ("candidate",)
    assert current_aliases(store) == {"candidate": A}
    assert apply(store, A).aliases == ("candidate", "production")
    assert current_aliases(store) == {"candidate": A, "production": A}
    assert store.aliases.history("production")[0].reason == "why"


def test_model_does_not_replace_a_production_model_it_was_not_compared_with(store: ArtifactStore) -> None:
    promote(store, A, "production", by="", reason="")
    found = apply(store, D, production=B)
    assert found.aliases == ("candidate",)
    assert "changed by another user or run in the meantime" in found.reasons[-1]
    assert current_aliases(store)["production"] == A
    assert apply(store, D, production=A).aliases == ("candidate", "production")


def test_model_that_was_rolled_back_is_not_promoted_by_the_gate(store: ArtifactStore) -> None:
    promote(store, A, "production", by="", reason="")
    apply(store, B, production=A)
    rollback(store, "production", by="ann", reason="rude")
    found = apply(store, B, production=A)
    assert found.aliases == ("candidate",)
    assert "rolled back" in found.reasons[-1]
    assert current_aliases(store)["production"] == A
    # A user may promote it by hand. After that the gate promotes other models again.
    promote(store, B, "production", by="ann", reason="not so rude")
    assert apply(store, D, production=B).aliases == ("candidate", "production")


def test_model_already_in_production_is_reported(store: ArtifactStore) -> None:
    assert apply(store, A, passed=False, production=A).reasons[0] == "this model is already in production"
