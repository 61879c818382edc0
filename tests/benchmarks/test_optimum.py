"""The estimated optimum under a KL budget, against worlds whose optimum is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from optimum import Frontier
from oracle import World


def test_binary_rule_by_hand() -> None:
    """Half of the responses are good. With lambda = ln 3, 3/4 are: KL = 3/4 ln 3/2 + 1/4 ln 1/2."""
    scores = np.tile([0.0, 1.0], (3, 50))
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    found = Frontier(scores, scores).at_kl(kl)
    assert found.value == pytest.approx(0.75, abs=1e-3)
    assert found.multiplier == pytest.approx(math.log(3), abs=1e-2)
    # Weights of 3 to 1 on 50 responses each: (50 · 3 + 50)² / (50 · 9 + 50) = 80.
    assert found.effective == pytest.approx(80, abs=0.5)
    assert not found.saturated
    assert Frontier(scores, scores).least_kl(0.75) == pytest.approx(kl, abs=1e-3)


def test_a_budget_that_cannot_be_spent_is_said() -> None:
    scores = np.tile([0.0, 1.0], (3, 50))
    found = Frontier(scores, scores).at_kl(1.0)
    assert found.saturated
    assert (found.value, found.kl) == pytest.approx((1.0, math.log(2)))


def test_no_budget_is_the_reference() -> None:
    values = np.array([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    found = Frontier(np.arange(8.0).reshape(2, 4), values).at_kl(0.0)
    assert found.value == pytest.approx(0.625)
    assert found.effective == pytest.approx(4)
    assert found.low <= 0.625 <= found.high


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("beta", [2.0, 0.5])
def test_agrees_with_the_exact_optimum_of_an_enumerated_world(seed: int, beta: float) -> None:
    """Three prompts with eight responses each, whose optimum at this beta is written down in closed form."""
    world = World(seed)
    reference, optimum = world.reference(), world.optimum(beta)
    rewards = [world.reward(responses) for responses in world.responses]
    exact_kl = float(torch.stack([(p * (p / q).log()).sum() for p, q in zip(optimum, reference, strict=True)]).mean())
    exact = float(torch.stack([p @ r for p, r in zip(optimum, rewards, strict=True)]).mean())
    drawn = [
        r[torch.multinomial(q, 4000, replacement=True, generator=world.generator)].double().numpy()
        for q, r in zip(reference, rewards, strict=True)
    ]
    scores = np.stack(drawn)
    found = Frontier(scores, scores).at_kl(exact_kl)
    assert found.value == pytest.approx(exact, abs=0.03)
    assert found.multiplier == pytest.approx(1 / beta, rel=0.05)
    assert found.value > scores.mean() + 0.05


def test_few_samples_make_the_estimate_too_low() -> None:
    """One good response in 50: most sets of 8 responses hold none, so the estimate cannot reach the true optimum."""
    noise = np.random.default_rng(0)
    good = (noise.random((100, 512)) < 0.02).astype(float)
    budget = 1.0
    many, few = Frontier(good, good).at_kl(budget), Frontier(good[:, :8], good[:, :8]).at_kl(budget)
    assert few.value < many.value
