"""GRPO, RLOO and online DPO with their defaults learn a rule with every seed (`benchmarks/rule_vetting.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from rule_vetting import OPTIMIZERS, SEEDS, vet


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one store for all tests, so that the optimizers share SFT models."""
    return tmp_path_factory.mktemp("store")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_more_responses_are_good_than_those_of_the_sft_model(optimizer: str, seed: int, store: Path) -> None:
    vetted = vet(optimizer, seed, store)
    assert vetted.lower > 0
    assert vetted.kl < vetted.ceiling
    assert vetted.kept > 0
