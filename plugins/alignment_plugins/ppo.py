"""Proximal policy optimization (arXiv 1707.06347; for language models 2203.02155 and 2403.17031)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import ConfigDict, Field

from alignment_core import losses
from alignment_core.on_policy import Experience, OnPolicyOptimizer, Sampled
from alignment_core.plugin_api import AlignmentOptimizer, AlignmentRun, LossOutput, MicroBatch, Needs, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class PPO(OnPolicyOptimizer):
    """Samples from the policy and maximizes the reward, with a KL penalty to the SFT model and a value model."""

    model_config = ConfigDict(title="PPO")
    kl_setting: ClassVar[str | None] = "kl_coef"

    name: Literal["ppo"] = "ppo"
    kl_coef: float = Field(0.05, ge=0)
    """β, the weight of the per-token KL penalty in the reward. The initial value if `kl_target` is set."""
    kl_target: float | None = Field(None, gt=0)
    """Target KL per response in nats for an adaptive β (arXiv 1909.08593). If unset, β is fixed."""
    kl_horizon: int = Field(1000, ge=1)
    """Time scale of the adaptive β, in responses."""
    clip: float = Field(0.2, gt=0, lt=1)
    """ε of the clipped policy ratio."""
    value_clip: float = Field(0.2, gt=0)
    """Clip range of the value loss: how far a value may usefully move from its value at sampling time."""
    value_weight: float = Field(0.5, gt=0)
    """Weight of the value loss."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """λ of generalized advantage estimation."""

    def needs(self) -> Needs:
        return Needs(prompts=True, reward=True, reference=True, value=True)

    def experience(self, run: AlignmentRun, sampled: Sampled) -> Experience:
        old, kl_coef = sampled.old, run.state.setdefault("kl_coef", self.kl_coef)
        values = run.value.values(sampled.sequences)
        rewards = losses.token_rewards(sampled.scores, old.logps, sampled.reference_logps, old.mask, kl_coef=kl_coef)
        advantages, returns = losses.gae(rewards, values, old.mask, gamma=self.gamma, lam=self.gae_lambda)
        constants = {
            "old_logps": old.logps,
            "old_values": values,
            "advantages": losses.whiten(advantages, old.mask),
            "returns": returns,
        }
        explained = float(losses.explained_variance(values, returns, old.mask))
        return Experience(sampled.rows(constants), {"kl_coef": kl_coef, "explained_variance": explained})

    def after_rollout(self, run: AlignmentRun, kl: float) -> None:
        if self.kl_target is not None:
            error = min(max(kl / self.kl_target - 1, -0.2), 0.2)
            run.state["kl_coef"] *= 1 + error * self.rollout_size / self.kl_horizon

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        sequences = micro.sequences("response")
        now = run.policy.token_logps(sequences, self.temperature)
        old, advantages = micro.token_values("old_logps"), micro.token_values("advantages")
        policy, policy_clipped = losses.clipped_policy(now.logps, old, advantages, clip=self.clip)
        value, value_clipped = losses.clipped_value(
            run.value.values(sequences),
            micro.token_values("old_values"),
            micro.token_values("returns"),
            clip=self.value_clip,
        )
        tokens = micro.denominators["tokens"]

        def mean(per_token: Tensor) -> Tensor:
            return (per_token * now.mask).sum() / tokens

        policy_loss, value_loss = mean(policy), mean(value)
        metrics = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "policy_clipped_share": mean(policy_clipped),
            "value_clipped_share": mean(value_clipped),
            "step_kl": mean(losses.k3(old, now.logps)),
            "entropy": mean(now.entropy),
        }
        return LossOutput(policy_loss + self.value_weight * value_loss, metrics)


@hookimpl
def alignment_optimizers() -> list[type[AlignmentOptimizer]]:
    return [PPO]
