"""REINFORCE with a leave-one-out baseline (RLOO, arXiv 2402.14740)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from alignment_core import losses
from alignment_core.on_policy import Experience, OnPolicyOptimizer, Sampled
from alignment_core.plugin_api import AlignmentOptimizer, AlignmentRun, LossOutput, MicroBatch, Needs, hookimpl


class RLOO(OnPolicyOptimizer):
    """Samples several responses per prompt and reinforces each by how much it exceeds the mean of the others."""

    model_config = ConfigDict(title="RLOO")
    kl_setting: ClassVar[str | None] = "kl_coef"

    name: Literal["rloo"] = "rloo"
    samples: int = Field(4, ge=2)
    """Responses per prompt. The baseline of each is the mean of the others."""
    kl_coef: float = Field(0.05, ge=0)
    """β, the weight of the KL penalty in the reward of a response."""
    clip: float = Field(0.2, gt=0, lt=1)
    """ε of the clipped policy ratio of a complete response."""

    def needs(self) -> Needs:
        return Needs(prompts=True, reward=True, reference=self.kl_coef > 0)

    def experience(self, run: AlignmentRun, sampled: Sampled) -> Experience:
        rewards = sampled.grouped(sampled.scores - self.kl_coef * sampled.kl())
        advantages = losses.leave_one_out(rewards).flatten()
        constants = {"advantage": advantages, "old_logps": sampled.old.logps}
        return Experience(sampled.rows(constants), {"advantage_deviation": float(advantages.std())})

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        now, old = (
            run.policy.token_logps(micro.sequences("response"), self.temperature),
            micro.token_values("old_logps"),
        )
        # The probability of a complete response is one action (2402.14740, section 2.2).
        loss, clipped = losses.clipped_policy(
            now.logps.sum(dim=1), old.sum(dim=1), micro.values("advantage"), clip=self.clip
        )
        rows, tokens = micro.denominators["rows"], micro.denominators["tokens"]
        metrics = {
            "policy_clipped_share": clipped.sum() / rows,
            "step_kl": (losses.k3(old, now.logps) * now.mask).sum() / tokens,
            "entropy": now.entropy.sum() / tokens,
        }
        return LossOutput(loss.sum() / rows, metrics)


@hookimpl
def alignment_optimizers() -> list[type[AlignmentOptimizer]]:
    return [RLOO]
