"""The optimizers against the exact optimum of a world small enough to enumerate (`benchmarks/oracle.py`)."""

from __future__ import annotations

import pytest
import torch
from oracle import BETA, ON_POLICY, PROMPTS, World, distance, dpo, kto, on_policy


def test_optimum_maximizes_the_objective() -> None:
    """No nearby policy has a larger E[r] - beta KL. If r is 0, the reference is optimal."""
    world = World(0)
    reference, best = world.reference()[0], world.optimum(BETA)[0]
    reward = world.reward(world.responses[0])

    def objective(policy: torch.Tensor) -> float:
        return float((policy * (reward - BETA * (policy / reference).log())).sum())

    noise = torch.Generator().manual_seed(0)
    for _ in range(50):
        other = (best.log() + 0.1 * torch.randn(len(best), generator=noise)).softmax(dim=0)
        assert objective(other) < objective(best)
    world.rewards.zero_()
    torch.testing.assert_close(world.optimum(BETA), world.reference())


def test_untrained_policy_is_the_reference() -> None:
    from alignment_core.training.rows import Rows

    world = World(0)
    run = world.open(Rows())
    torch.testing.assert_close(world.policy(run), world.reference(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close([p.sum() for p in world.reference()], [torch.tensor(1.0)] * PROMPTS)
    with torch.no_grad():
        torch.testing.assert_close(run.reward.scores(world.responses[1]), world.reward(world.responses[1]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_dpo_approaches_the_optimum_with_the_data(seed: int) -> None:
    few, many = dpo(World(seed), 240), dpo(World(seed), 15360)
    assert many < 0.1
    assert many < few / 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ON_POLICY)
def test_on_policy_optimizers_approach_the_optimum_with_the_steps(name: str, seed: int) -> None:
    start = distance(World(seed).reference(), World(seed).optimum(BETA))
    few, many = (on_policy(name, World(seed), rollouts) for rollouts in (2, 20))
    assert many < 0.06
    assert many < few < start


@pytest.mark.slow
def test_kto_moves_to_the_most_liked_responses() -> None:
    """There is no interior optimum: responses liked more than average gain, and the most liked one wins.

    The weights balance the classes, so p·λ_D - (1 - p)·λ_U changes its sign where p is the mean over all thumbs.
    """
    world = World(0)
    expected = [(p * world.liked(y)).sum() for p, y in zip(world.reference(), world.responses, strict=True)]
    mean = float(torch.stack(expected).mean())
    for liked, ratio in kto(world, 3840):
        for p, moved in zip(liked.tolist(), ratio.tolist(), strict=True):
            if abs(p - mean) > 0.15:  # closer to the mean, the sampling of the thumbs decides
                assert (moved > 0) == (p > mean), (p, mean, moved)
        assert liked[ratio.argmax()] > liked.max() - 0.05
