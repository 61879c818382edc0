"""Parts of PPO's loss: values by hand, brute force, and independence of padding."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignment_core import losses

numbers = st.floats(-5, 5, width=32)
WIDTH = 6


@st.composite
def padded_rows(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]]]:
    """Draw rewards and values of a few responses of different lengths."""
    lengths = draw(st.lists(st.integers(1, WIDTH), min_size=1, max_size=4))
    rows = [[draw(st.lists(numbers, min_size=n, max_size=n)) for n in lengths] for _ in range(2)]
    return rows[0], rows[1]


def padded(rows: list[list[float]], fill: float, width: int = WIDTH) -> Tensor:
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def mask_of(rows: list[list[float]], width: int = WIDTH) -> Tensor:
    return torch.tensor([[1.0] * len(row) + [0.0] * (width - len(row)) for row in rows])


def test_token_rewards_by_hand() -> None:
    """Row 0 has three tokens, row 1 has one, and beta is 0.5. The score goes to the last real token, never to padding.

    Row 0: -0.5 * (-1 + 2, -2 + 2, -3 + 1) = (-0.5, 0, 1), plus the score 10 at token 2. Row 1: -0.5 * (-1 + 3) + 20.
    """
    logps = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, 7.0, 7.0]])
    reference = torch.tensor([[-2.0, -2.0, -1.0], [-3.0, -9.0, -9.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    rewards = losses.token_rewards(torch.tensor([10.0, 20.0]), logps, reference, mask, kl_coef=0.5)
    assert rewards.tolist() == [[-0.5, 0.0, 11.0], [19.0, 0.0, 0.0]]


@given(rows=padded_rows(), kl_coef=st.floats(0, 1))
def test_rewards_add_up_to_score_minus_kl(rows: tuple[list[list[float]], list[list[float]]], kl_coef: float) -> None:
    logps, reference = rows
    scores = torch.arange(1.0, len(logps) + 1)
    rewards = losses.token_rewards(scores, padded(logps, 3.0), padded(reference, -4.0), mask_of(logps), kl_coef=kl_coef)
    for i, (policy, other) in enumerate(zip(logps, reference, strict=True)):
        assert rewards[i].sum().item() == pytest.approx(i + 1 - kl_coef * (sum(policy) - sum(other)), abs=1e-4)
        assert not rewards[i, len(policy) :].any()


def test_gae_by_hand() -> None:
    """Rewards (1, 2), values (0.5, 0.25), gamma 0.9, lambda 0.8.

    delta_1 = 2 - 0.25 = 1.75, delta_0 = 1 + 0.9 * 0.25 - 0.5 = 0.725, A_1 = 1.75, A_0 = 0.725 + 0.72 * 1.75 = 1.985.
    """
    advantages, returns = losses.gae(
        torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.25]]), torch.ones(1, 2), gamma=0.9, lam=0.8
    )
    assert advantages[0].tolist() == pytest.approx([1.985, 1.75])
    assert returns[0].tolist() == pytest.approx([2.485, 2.0])


@given(rows=padded_rows(), gamma=st.floats(0.5, 1), lam=st.floats(0, 1))
def test_gae_matches_the_sum_in_the_paper(
    rows: tuple[list[list[float]], list[list[float]]], gamma: float, lam: float
) -> None:
    """Compare with arXiv:1506.02438, equation 16, term by term. Values in the padding do not count."""
    rewards, values = rows
    advantages, returns = losses.gae(
        padded(rewards, 99.0), padded(values, -99.0), mask_of(rewards), gamma=gamma, lam=lam
    )
    for i, (reward, value) in enumerate(zip(rewards, values, strict=True)):
        n = len(reward)
        delta = [reward[t] + gamma * (value[t + 1] if t + 1 < n else 0) - value[t] for t in range(n)]
        expected = [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)]
        assert advantages[i, :n].tolist() == pytest.approx(expected, abs=1e-3, rel=1e-4)
        assert returns[i, :n].tolist() == pytest.approx(
            [a + v for a, v in zip(expected, value, strict=True)], abs=1e-3, rel=1e-4
        )
        assert not advantages[i, n:].any()
        assert not returns[i, n:].any()


@given(rows=padded_rows(), gamma=st.floats(0.5, 1))
def test_gae_with_lambda_1_is_the_discounted_return(
    rows: tuple[list[list[float]], list[list[float]]], gamma: float
) -> None:
    rewards, values = rows
    _, returns = losses.gae(padded(rewards, 0.0), padded(values, 0.0), mask_of(rewards), gamma=gamma, lam=1.0)
    for i, reward in enumerate(rewards):
        expected = [sum(gamma ** (k - t) * reward[k] for k in range(t, len(reward))) for t in range(len(reward))]
        assert returns[i, : len(reward)].tolist() == pytest.approx(expected, abs=1e-3, rel=1e-4)


@given(rows=padded_rows(), gamma=st.floats(0.5, 1))
def test_gae_with_lambda_0_is_the_one_step_error(
    rows: tuple[list[list[float]], list[list[float]]], gamma: float
) -> None:
    rewards, values = rows
    advantages, _ = losses.gae(padded(rewards, 0.0), padded(values, 0.0), mask_of(rewards), gamma=gamma, lam=0.0)
    for i, (reward, value) in enumerate(zip(rewards, values, strict=True)):
        following = [*value[1:], 0.0]
        expected = [r + gamma * f - v for r, f, v in zip(reward, following, value, strict=True)]
        assert advantages[i, : len(reward)].tolist() == pytest.approx(expected, abs=1e-4)


def test_whiten_by_hand() -> None:
    """1, 2, 3 have mean 2 and population variance 2/3: -sqrt(3/2), 0, sqrt(3/2). The padding's 1000 does not count."""
    values = torch.tensor([[1.0, 2.0], [3.0, 1000.0]])
    whitened = losses.whiten(values, torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    assert whitened.flatten().tolist() == pytest.approx([-math.sqrt(1.5), 0.0, math.sqrt(1.5), 0.0], abs=1e-6)


@given(rows=padded_rows(), extra=st.integers(1, 5), junk=numbers)
def test_whiten_ignores_padding(rows: tuple[list[list[float]], list[list[float]]], extra: int, junk: float) -> None:
    values, _ = rows
    narrow = losses.whiten(padded(values, 0.0), mask_of(values))
    wide = losses.whiten(padded(values, junk, WIDTH + extra), mask_of(values, WIDTH + extra))
    torch.testing.assert_close(wide[:, :WIDTH], narrow, rtol=1e-4, atol=1e-4)
    assert not wide[:, WIDTH:].any()


def test_clipped_policy_by_hand() -> None:
    """Ratios 1.5 and 0.5 with clip 0.2 for advantages +1 and -1 (1707.06347, figure 1).

    +1, 1.5: min(1.5, 1.2) = 1.2, clipped. +1, 0.5: min(0.5, 0.8) = 0.5. -1, 1.5: min(-1.5, -1.2) = -1.5.
    -1, 0.5: min(-0.5, -0.8) = -0.8, clipped. A clipped token has no gradient.
    """
    logps = torch.tensor([1.5, 0.5, 1.5, 0.5]).log().requires_grad_()
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss, clipped = losses.clipped_policy(logps, torch.zeros(4), advantages, clip=0.2)
    assert loss.tolist() == pytest.approx([-1.2, -0.5, 1.5, 0.8])
    assert clipped.tolist() == [1.0, 0.0, 0.0, 1.0]
    loss.sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == pytest.approx([0.0, -0.5, 1.5, 0.0])


@given(advantage=numbers, logp=st.floats(-20, 0, width=32))
def test_clipped_policy_at_the_sampling_policy_is_the_policy_gradient(advantage: float, logp: float) -> None:
    logps = torch.tensor([logp], requires_grad=True)
    loss, clipped = losses.clipped_policy(logps, logps.detach().clone(), torch.tensor([advantage]), clip=0.2)
    loss.sum().backward()
    assert loss.item() == -advantage
    assert clipped.item() == 0
    assert logps.grad is not None
    # At the tie, each branch contributes half the gradient, which rounds in the last bit of a subnormal number.
    assert logps.grad.item() == pytest.approx(-advantage, abs=1e-37)


def test_clipped_value_by_hand() -> None:
    """Old value 0, clip 0.2. V = 1, return 1: 0 against (0.2 - 1)^2 = 0.64, so the clipped error counts, halved: 0.32.

    V = -1, return 1: (-2)^2 = 4 against (-0.2 - 1)^2 = 1.44, so 2. V = 0.1, return 1: both 0.81, so 0.405, not clipped.
    """
    values = torch.tensor([1.0, -1.0, 0.1], requires_grad=True)
    loss, clipped = losses.clipped_value(values, torch.zeros(3), torch.ones(3), clip=0.2)
    assert loss.tolist() == pytest.approx([0.32, 2.0, 0.405])
    assert clipped.tolist() == [1.0, 0.0, 0.0]
    loss.sum().backward()
    assert values.grad is not None
    assert values.grad[0].item() == 0
    assert values.grad[1].item() == pytest.approx(-2.0)


def test_explained_variance_by_hand() -> None:
    """Returns 1, 2, 3 (variance 2/3); errors 0, 0, 1 (variance 2/9): 1 - 1/3. A constant explains nothing."""
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 50.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    values = torch.tensor([[1.0, 2.0, 2.0, -50.0]])
    assert losses.explained_variance(values, returns, mask).item() == pytest.approx(2 / 3)
    assert losses.explained_variance(torch.full((1, 4), 7.0), returns, mask).item() == pytest.approx(0.0, abs=1e-6)
    assert losses.explained_variance(returns, returns, mask).item() == 1.0


def test_an_unknown_loss_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'dpoo'"):
        losses.dpoo  # noqa: B018
