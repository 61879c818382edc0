"""GDPO (arXiv 2601.05242): GRPO with several rewards, each normalized by its group before they are added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from alignment_core import losses
from alignment_core.on_policy import Experience, OnPolicyOptimizer, Sampled
from alignment_core.plugin_api import AlignmentRun, LossOutput, MicroBatch, Needs, Rollout


class GDPO(OnPolicyOptimizer):
    """Samples several responses per prompt and reinforces those that exceed their group, by each of several rewards.

    A reward that few responses get, or whose scale is small, counts as much as the others. The penalties for length
    have no part in the advantages.
    """

    model_config = ConfigDict(title="GDPO")
    kl_setting: ClassVar[str | None] = "kl_coef"
    evaluators: ClassVar[tuple[str, ...]] = ("objectives", "held_out_measure")
    example: ClassVar[Mapping[str, Any]] = {
        "objectives": [{"name": "refusal"}, {"name": "length_band", "most": 50}],
    }

    name: Literal["gdpo"] = "gdpo"
    objectives: list[dict[str, Any]] = Field(min_length=1)
    """Evaluators that reward a response, each with its `name` and settings."""
    samples: int = Field(8, ge=2)
    """Responses per prompt, which form a group."""
    kl_coef: float = Field(0.05, ge=0)
    """β, the weight of the KL penalty to the SFT model in the loss, per token."""
    clip: float = Field(0.2, gt=0, lt=1)
    """ε of the clipped policy ratio."""

    def needs(self) -> Needs:
        return Needs(prompts=True, reference=True)

    def rate(self, run: AlignmentRun, rollouts: Sequence[Rollout], *, held_out: bool) -> Sequence[float]:
        scores = [run.judge(f"objectives.{index}", rollouts) for index in range(len(self.objectives))]
        if not held_out:
            run.state["scores"] = scores
        return [sum(of_response) for of_response in zip(*scores, strict=True)]

    def experience(self, run: AlignmentRun, sampled: Sampled) -> Experience:
        scores = [sampled.scores.new_tensor(each) for each in run.state.pop("scores")]
        groups = [losses.group_advantages(sampled.grouped(each), divide=True).flatten() for each in scores]
        total = sum(groups[1:], groups[0])
        constants = {
            "advantage": losses.whiten(total, total.new_ones(total.shape)),
            "old_logps": sampled.old.logps,
            "reference_logps": sampled.reference_logps,
        }
        means = {f"objective_{index}": float(each.mean()) for index, each in enumerate(scores)}
        return Experience(sampled.rows(constants), means)

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        now = run.policy.token_logps(micro.sequences("response"), self.temperature)
        old, advantages = micro.token_values("old_logps"), micro.values("advantage").unsqueeze(1)
        policy, clipped = losses.clipped_policy(now.logps, old, advantages, clip=self.clip)
        kl, tokens = losses.k3(now.logps, micro.token_values("reference_logps")), micro.denominators["tokens"]
        metrics = {
            "policy_clipped_share": (clipped * now.mask).sum() / tokens,
            "step_kl": (losses.k3(old, now.logps) * now.mask).sum() / tokens,
        }
        return LossOutput(((policy + self.kl_coef * kl) * now.mask).sum() / tokens, metrics)
