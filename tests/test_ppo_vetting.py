"""PPO with its defaults raises the held-out reward with every seed (`benchmarks/ppo_vetting.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from ppo_vetting import SEEDS, WORLDS, vet


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one store for all tests, so that stages shared by the seeds are built once."""
    return tmp_path_factory.mktemp("store")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("world", WORLDS)
def test_held_out_reward_rises_with_the_defaults(world: str, seed: int, store: Path, shared_data: Path) -> None:
    vetted = vet(world, seed, store, shared_data)
    assert vetted.lower > 0
    assert vetted.kl < vetted.ceiling
    assert vetted.kept > 0
