"""Advantages within groups, and the KL estimator of GRPO: values by hand and properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignment_core import losses

numbers = st.floats(-5, 5, width=32)


@st.composite
def groups(draw: st.DrawFn) -> Tensor:
    """Draw rewards of shape (groups, responses per group)."""
    size = draw(st.integers(2, 6))
    return torch.tensor(draw(st.lists(st.lists(numbers, min_size=size, max_size=size), min_size=1, max_size=4)))


def test_group_advantages_by_hand() -> None:
    """1, 2, 3, 6 have mean 3 and sample variance (4 + 1 + 0 + 9) / 3. Equal rewards have no advantage."""
    rewards = torch.tensor([[1.0, 2.0, 3.0, 6.0], [5.0, 5.0, 5.0, 5.0]])
    plain = losses.group_advantages(rewards, divide=False)
    assert plain.tolist() == [[-2.0, -1.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0]]
    divided = losses.group_advantages(rewards, divide=True)
    deviation = math.sqrt(14 / 3)
    assert divided[0].tolist() == pytest.approx([-2 / deviation, -1 / deviation, 0, 3 / deviation], rel=1e-4)
    assert divided[1].tolist() == [0.0, 0.0, 0.0, 0.0]


def test_rounding_gives_no_advantage() -> None:
    """Three float32 numbers whose sum rounds: without a smallest deviation, the advantages would be of order 1."""
    rewards = torch.tensor([[0.1, 0.1, 0.1 + 1e-8]])
    assert losses.group_advantages(rewards, divide=True).abs().max() < 1e-3


def test_leave_one_out_by_hand() -> None:
    """1 - (2 + 6) / 2 = -3, 2 - (1 + 6) / 2 = -1.5, 6 - (1 + 2) / 2 = 4.5."""
    assert losses.leave_one_out(torch.tensor([[1.0, 2.0, 6.0]])).tolist() == [[-3.0, -1.5, 4.5]]


@given(rewards=groups(), divide=st.booleans(), shift=numbers, data=st.data())
def test_advantages_depend_only_on_the_group(rewards: Tensor, divide: bool, shift: float, data: st.DataObject) -> None:
    """They sum to zero, ignore a shift of the group, and follow any permutation of responses and of groups."""
    order = data.draw(st.permutations(range(rewards.shape[1])))
    turn = data.draw(st.permutations(range(rewards.shape[0])))
    for of in (lambda r: losses.group_advantages(r, divide=divide), losses.leave_one_out):
        found = of(rewards)
        # Division enlarges rounding by up to 1 / SMALLEST_DEVIATION where rewards are equal up to rounding.
        tolerance = {"rtol": 1e-3, "atol": 2e-2 if divide else 1e-4}
        torch.testing.assert_close(found.sum(dim=1), torch.zeros(len(rewards)), **tolerance)
        torch.testing.assert_close(of(rewards[:, order]), found[:, order], **tolerance)
        torch.testing.assert_close(of(rewards[turn]), found[turn])
        assert (found[rewards == rewards.amax(dim=1, keepdim=True)] >= -1e-2).all()


@given(rewards=groups())
def test_leave_one_out_is_the_centered_reward_times_k_over_k_minus_1(rewards: Tensor) -> None:
    k = rewards.shape[1]
    expected = losses.group_advantages(rewards, divide=False) * k / (k - 1)
    torch.testing.assert_close(losses.leave_one_out(rewards), expected, rtol=1e-4, atol=1e-4)


def test_k3_by_hand() -> None:
    """log ref - log π is 0.5 and -1: e^0.5 - 1.5 and e^-1. It is 0 where both agree. Gradient 1 - ref/π per log π."""
    logps = torch.tensor([-1.0, -2.0, -0.7], requires_grad=True)
    found = losses.k3(logps, torch.tensor([-0.5, -3.0, -0.7]))
    assert found.tolist() == pytest.approx([math.exp(0.5) - 1.5, math.exp(-1.0), 0.0])
    found.sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == pytest.approx([1 - math.exp(0.5), 1 - math.exp(-1.0), 0.0])


@given(logits=st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=2, max_size=6))
def test_mean_of_k3_is_the_kl(logits: list[tuple[float, float]]) -> None:
    """Over all outcomes, weighted by π, and never negative."""
    policy, other = torch.tensor(logits, dtype=torch.float64).log_softmax(dim=0).unbind(dim=1)
    estimates = losses.k3(policy, other)
    exact = (policy.exp() * (policy - other)).sum()
    torch.testing.assert_close((policy.exp() * estimates).sum(), exact, rtol=1e-6, atol=1e-9)
    assert (estimates >= -1e-12).all()


def test_higher_upper_clip_by_hand() -> None:
    """Ratios 1.25, 1.4 and 0.5 with clips 0.2 and 0.28 (2503.14476, equation 10).

    A = 1: 1.25 is not clipped, 1.4 counts as 1.28. A = -1: 0.5 counts as 0.8, as with the same clip on both sides.
    """
    logps = torch.tensor([1.25, 1.4, 0.5]).log()
    advantages = torch.tensor([1.0, 1.0, -1.0])
    loss, clipped = losses.clipped_policy(logps, torch.zeros(3), advantages, clip=0.2, clip_high=0.28)
    assert loss.tolist() == pytest.approx([-1.25, -1.28, 0.8])
    assert clipped.tolist() == [0.0, 1.0, 1.0]
