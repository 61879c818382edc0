"""The parts of on-policy losses, on padded tensors of shape (rows, longest response). `mask` is 1 at real tokens.

Sources: PPO arXiv 1707.06347, GAE 1506.02438, RLHF 2203.02155, implementation details 2403.17031, GRPO 2402.03300,
RLOO 2402.14740, DAPO 2503.14476, Dr. GRPO 2503.20783.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_DEVIATION = 1e-4
"""Added to a group's deviation, so that rewards that differ only by rounding give no advantage."""


def token_rewards(scores: Tensor, logps: Tensor, reference_logps: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """Return the per-token reward -β(log π - log ref), plus the reward model's score at each row's last real token.

    Args:
        scores: shape (rows,).
        logps: log π of the sampled tokens.
        reference_logps: log ref of the same tokens.
        mask: real tokens; every row has at least one.
        kl_coef: β.
    """
    rewards = -kl_coef * (logps - reference_logps) * mask
    last = mask.sum(dim=1).long() - 1
    return rewards.scatter_add(1, last.unsqueeze(1), scores.unsqueeze(1).to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Return the generalized advantage estimates and the returns (1506.02438, equation 16).

    A_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V_{t+1} - V_t. The episode ends after the last real token, where V is 0.

    Returns:
        Advantages and returns (advantages + values), both zero at padding.
    """
    rewards, values = rewards * mask, values * mask  # makes every delta at padding 0
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(running)
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = delta + gamma * lam * running
        advantages[:, t] = running
        following = values[:, t]
    return advantages, (advantages + values) * mask


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale to mean 0 and population variance 1 over the real tokens. The result is zero at padding."""
    count = mask.sum()
    mean = (values * mask).sum() / count
    centered = (values - mean) * mask
    variance = (centered**2).sum() / count
    return centered * torch.rsqrt(variance + 1e-8)


def group_advantages(rewards: Tensor, *, divide: bool) -> Tensor:
    """Return how much each reward exceeds its group's mean, in units of the group's deviation if `divide`.

    Equation in section 4.1.2 of GRPO (2402.03300) with `divide`; without, Dr. GRPO (2503.20783, section 3).

    Args:
        rewards: shape (groups, responses per group).
        divide: divide by the sample standard deviation plus `SMALLEST_DEVIATION`.

    Returns:
        The same shape. Each group sums to zero.
    """
    centered = rewards - rewards.mean(dim=1, keepdim=True)
    return centered / (rewards.std(dim=1, keepdim=True) + SMALLEST_DEVIATION) if divide else centered


def leave_one_out(rewards: Tensor) -> Tensor:
    """Return how much each reward exceeds the mean of the others in its group (RLOO, 2402.14740, section 2.3).

    Args:
        rewards: shape (groups, responses per group), with at least two responses per group.

    Returns:
        The same shape. Each group sums to zero.
    """
    others = rewards.shape[1] - 1
    return rewards - (rewards.sum(dim=1, keepdim=True) - rewards) / others


def k3(logps: Tensor, other_logps: Tensor) -> Tensor:
    """Return an estimate of KL(π‖other) per token that is never negative: e^d - 1 - d with d = log other - log π.

    Its mean over samples of π is the KL (Schulman 2020, http://joschu.net/blog/kl-approx.html; 2402.03300, equation 4).
    """
    d = other_logps - logps
    return d.exp() - 1 - d


def clipped_policy(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, *, clip: float, clip_high: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the clipped surrogate -min(ρA, clip(ρ, 1-ε, 1+ε_high)A) (1707.06347, equation 7; ε_high 2503.14476).

    Args:
        logps: log π of tokens or of complete responses.
        old_logps: the same under the policy that sampled them.
        advantages: A, of a shape that broadcasts.
        clip: ε.
        clip_high: ε_high; ε if None.

    Returns:
        The loss of each token or response, and 1 where the clipped branch was taken (no gradient there).
    """
    ratio = torch.exp(logps - old_logps)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    return torch.maximum(plain, clipped), (clipped > plain).to(plain.dtype)


def clipped_value(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float) -> tuple[Tensor, Tensor]:
    """Return half the larger of the squared errors of V and of V clipped around its old value (2403.17031).

    Returns:
        Loss per token, and 1 where the clipped branch was taken.
    """
    plain = (values - returns) ** 2
    moved = values - old_values
    clipped = (old_values + moved.clamp(-clip, clip) - returns) ** 2
    # Within the clip range, both are equal up to rounding, which must not count as clipping.
    taken = (clipped > plain) & (moved.abs() > clip)
    return 0.5 * torch.maximum(plain, clipped), taken.to(plain.dtype)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Return 1 - Var(returns - values) / Var(returns) over the real tokens.

    1 is perfect, 0 is no better than the mean.
    """
    real = mask > 0
    target, error = returns[real], (returns - values)[real]
    return 1 - error.var(correction=0) / target.var(correction=0).clamp_min(1e-12)
