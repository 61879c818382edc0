"""Group relative policy optimization (GRPO, arXiv 2402.03300; options of DAPO 2503.14476 and Dr. GRPO 2503.20783)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from alignment_core import losses
from alignment_core.on_policy import Experience, OnPolicyOptimizer, Sampled
from alignment_core.plugin_api import AlignmentOptimizer, AlignmentRun, LossOutput, MicroBatch, Needs, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class GRPO(OnPolicyOptimizer):
    """Samples several responses per prompt and reinforces those that exceed their group. Needs no value model."""

    model_config = ConfigDict(title="GRPO")
    kl_setting: ClassVar[str | None] = "kl_coef"

    name: Literal["grpo"] = "grpo"
    samples: int = Field(8, ge=2)
    """Responses per prompt, which form a group."""
    kl_coef: float = Field(0.05, ge=0)
    """β, the weight of the KL penalty to the SFT model."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL penalty is: in the loss, per token (estimator k3), or in the reward of a response."""
    divide_by_deviation: bool = True
    """Divide advantages by the standard deviation of their group's rewards. Off: Dr. GRPO."""
    loss_mean: Literal["sequence", "token", "constant"] = "token"
    """How token losses are averaged: over each response and then over responses (GRPO), over all tokens of the step
    (DAPO), or as a sum per response divided by `max_new_tokens` (Dr. GRPO)."""
    clip: float = Field(0.2, gt=0, lt=1)
    """ε, how far the policy ratio may usefully fall below 1."""
    clip_high: float | None = Field(None, gt=0)
    """How far the policy ratio may usefully rise above 1. DAPO: 0.28. If unset, `clip`."""
    dynamic_sampling: bool = True
    """Leave out groups whose responses all have the same reward: without a KL penalty, nothing is learned from them."""
    refills: int = Field(0, ge=0)
    """Maximum number of rounds in which the groups that dynamic sampling leaves out are replaced by responses to new
    prompts. DAPO goes on until the rollout is full."""
    learn_from_unfinished: bool = True
    """Learn from responses that reached the length limit. Off: DAPO's overlong filtering."""

    @model_validator(mode="after")
    def _refills_what_is_left_out(self) -> GRPO:
        if self.refills and not self.dynamic_sampling:
            raise ValueError("refills replaces the groups that dynamic_sampling leaves out, but that is off")
        return self

    def needs(self) -> Needs:
        return Needs(prompts=True, reward=True, reference=self.kl_coef > 0)

    def refill_rounds(self) -> int:
        return self.refills

    def experience(self, run: AlignmentRun, sampled: Sampled) -> Experience:
        scores, kl = sampled.grouped(sampled.scores), sampled.grouped(sampled.kl())
        rewards = scores - self.kl_coef * kl if self.kl_in == "reward" else scores
        advantages = losses.group_advantages(rewards, divide=self.divide_by_deviation)
        equal = scores.amax(dim=1) == scores.amin(dim=1)
        keep = [
            not (self.dynamic_sampling and same) and (rollout.finished or self.learn_from_unfinished)
            for rollout, same in zip(sampled.rollouts, equal.repeat_interleave(self.samples).tolist(), strict=True)
        ]
        constants = {"advantage": advantages.flatten(), "old_logps": sampled.old.logps}
        if self._kl_in_loss():
            constants["reference_logps"] = sampled.reference_logps
        metrics = {
            "equal_groups": float(equal.sum()),
            "group_deviation": float(scores.std(dim=1).mean()),
            "left_out": float(len(keep) - sum(keep)),
        }
        return Experience(sampled.rows(constants, keep), metrics)

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        now = run.policy.token_logps(micro.sequences("response"), self.temperature)
        old, advantages = micro.token_values("old_logps"), micro.values("advantage").unsqueeze(1)
        policy, clipped = losses.clipped_policy(now.logps, old, advantages, clip=self.clip, clip_high=self.clip_high)
        tokens = micro.denominators["tokens"]

        def mean(per_token: Tensor) -> Tensor:
            return (per_token * now.mask).sum() / tokens

        loss = policy_loss = self._mean_loss(policy, now.mask, micro)
        metrics = {
            "policy_loss": policy_loss,
            "policy_clipped_share": mean(clipped),
            "step_kl": mean(losses.k3(old, now.logps)),
            "entropy": mean(now.entropy),
        }
        if self._kl_in_loss():
            kl_loss = self._mean_loss(losses.k3(now.logps, micro.token_values("reference_logps")), now.mask, micro)
            loss, metrics["kl_loss"] = policy_loss + self.kl_coef * kl_loss, kl_loss
        return LossOutput(loss, metrics)

    def _kl_in_loss(self) -> bool:
        return self.kl_in == "loss" and self.kl_coef > 0

    def _mean_loss(self, per_token: Tensor, mask: Tensor, micro: MicroBatch) -> Tensor:
        """Return this micro-batch's part of the step's mean by `loss_mean`."""
        sums = (per_token * mask).sum(dim=1)
        if self.loss_mean == "token":
            return sums.sum() / micro.denominators["tokens"]
        lengths = mask.sum(dim=1) if self.loss_mean == "sequence" else self.max_new_tokens
        return (sums / lengths).sum() / micro.denominators["rows"]


@hookimpl
def alignment_optimizers() -> list[type[AlignmentOptimizer]]:
    return [GRPO]
