"""REINFORCE++ (arXiv 2501.03262): PPO's clipped policy loss without a value model or groups of responses."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from alignment_core import losses
from alignment_core.on_policy import Experience, OnPolicyOptimizer, Sampled
from alignment_core.plugin_api import AlignmentOptimizer, AlignmentRun, LossOutput, MicroBatch, hookimpl


class ReinforcePlusPlus(OnPolicyOptimizer):
    """Samples responses and reinforces each token by the reward that follows it, compared with the whole rollout."""

    model_config = ConfigDict(title="REINFORCE++")
    kl_setting: ClassVar[str | None] = "kl_coef"

    name: Literal["reinforce"] = "reinforce"
    kl_coef: float = Field(0.05, ge=0)
    """β, the weight of the KL penalty per token in the reward."""
    clip: float = Field(0.2, gt=0, lt=1)
    """ε of the clipped policy ratio."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token."""

    def experience(self, run: AlignmentRun, sampled: Sampled) -> Experience:
        old = sampled.old
        rewards = losses.token_rewards(
            sampled.scores, old.logps, sampled.reference_logps, old.mask, kl_coef=self.kl_coef
        )
        # Without values, and with λ = 1, these are discounted sums of the rewards from each token on.
        following, _ = losses.gae(rewards, rewards.new_zeros(rewards.shape), old.mask, gamma=self.gamma, lam=1.0)
        constants = {"old_logps": old.logps, "advantages": losses.whiten(following, old.mask)}
        return Experience(sampled.rows(constants))

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        now = run.policy.token_logps(micro.sequences("response"), self.temperature)
        old, advantages = micro.token_values("old_logps"), micro.token_values("advantages")
        loss, clipped = losses.clipped_policy(now.logps, old, advantages, clip=self.clip)
        tokens = micro.denominators["tokens"]
        metrics = {
            "policy_clipped_share": (clipped * now.mask).sum() / tokens,
            "step_kl": (losses.k3(old, now.logps) * now.mask).sum() / tokens,
        }
        return LossOutput((loss * now.mask).sum() / tokens, metrics)


@hookimpl
def alignment_optimizers() -> list[type[AlignmentOptimizer]]:
    return [ReinforcePlusPlus]
