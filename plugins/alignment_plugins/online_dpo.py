"""Online DPO (arXiv 2402.04792): DPO on pairs of responses that the current policy has just sampled."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from alignment_core import losses
from alignment_core.on_policy import Experience, OnPolicyOptimizer, Sampled
from alignment_core.plugin_api import (
    AlignmentOptimizer,
    AlignmentRun,
    LossOutput,
    MicroBatch,
    Needs,
    Rollout,
    Row,
    TokenSequence,
    hookimpl,
)

SIDES = ("chosen", "rejected")


class OnlineDPO(OnPolicyOptimizer):
    """Samples responses, pairs the best with the worst of each prompt, and learns from the pairs as DPO does."""

    model_config = ConfigDict(title="Online DPO")
    kl_setting: ClassVar[str] = "beta"
    pair_evaluators: ClassVar[tuple[str, ...]] = ("judge",)

    name: Literal["online_dpo"] = "online_dpo"
    samples: int = Field(4, ge=2)
    """Responses per prompt. The best and the worst of them become a pair."""
    batch_size: int = Field(4, ge=1)
    """Pairs per optimizer step (a minibatch of the rollout)."""
    beta: float = Field(0.1, gt=0)
    """Strength of the KL penalty. Larger values stay closer to the SFT model."""
    refills: int = Field(0, ge=0)
    """Maximum number of rounds in which prompts whose responses all have the same reward are replaced by new ones."""
    judge: dict[str, Any] | None = None
    """Pair evaluator that compares the responses to a prompt: its `name` and settings. null: the reward decides."""

    def needs(self) -> Needs:
        return Needs(prompts=True, reward=self.judge is None, reference=True)

    def rate(self, run: AlignmentRun, rollouts: Sequence[Rollout], *, held_out: bool) -> Sequence[float]:
        """Return rewards, or with a judge how often each response is preferred.

        It is compared with the other responses to its prompt, and on held-out prompts with the SFT model's response.
        """
        if self.judge is None:
            return super().rate(run, rollouts, held_out=held_out)
        if held_out:
            return self._over_first(run, rollouts)
        groups = range(0, len(rollouts), self.samples)
        pairs = [(first + i, first + j) for first in groups for i, j in combinations(range(self.samples), 2)]
        found = run.prefer("judge", [rollouts[i] for i, _ in pairs], [rollouts[j] for _, j in pairs])
        rates = [0.0] * len(rollouts)
        for (i, j), preference in zip(pairs, found, strict=True):
            rates[i] += preference / (self.samples - 1)
            rates[j] += (1 - preference) / (self.samples - 1)
        return rates

    def _over_first(self, run: AlignmentRun, rollouts: Sequence[Rollout]) -> Sequence[float]:
        """Compare with the responses at the first call, which is before the first step."""
        if "first" not in run.state:
            run.state["first"] = [[r.sequence.ids, r.sequence.start, r.finished, r.text] for r in rollouts]
            return [0.5] * len(rollouts)
        first = [
            Rollout(rollout.prompt, TokenSequence(tuple(ids), start), finished, text)
            for rollout, (ids, start, finished, text) in zip(rollouts, run.state["first"], strict=True)
        ]
        return run.prefer("judge", rollouts, first)

    def rows_per_rollout(self) -> int:
        return self.rollout_size // self.samples

    def refill_rounds(self) -> int:
        return self.refills

    def experience(self, run: AlignmentRun, sampled: Sampled) -> Experience:
        scores = sampled.grouped(sampled.scores)
        reference = sampled.reference_logps.sum(dim=1)
        rows = sampled.rows({"old_logps": sampled.old.logps, "reference": reference})
        pairs = []
        for group, (best, worst) in enumerate(
            zip(scores.argmax(dim=1).tolist(), scores.argmin(dim=1).tolist(), strict=True)
        ):
            if scores[group, best] > scores[group, worst]:
                first = group * self.samples
                pairs.append(_pair(str(group), rows[first + best], rows[first + worst]))
        gap = float((scores.amax(dim=1) - scores.amin(dim=1)).mean())
        return Experience(pairs, {"equal_groups": float(len(scores) - len(pairs)), "score_gap": gap})

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        now = run.policy.token_logps(micro.sequences("chosen") + micro.sequences("rejected"), self.temperature)
        ratios, moved = [], []
        for side, logps in zip(SIDES, now.logps.chunk(2), strict=True):
            ratios.append(logps.sum(dim=1) - micro.values(f"{side}_reference"))
            old = micro.token_values(f"{side}_old_logps")
            # Both sides are padded to the longest response of either side.
            moved.append(losses.k3(old, logps[:, : old.shape[1]]).sum())
        chosen, rejected = ratios
        pairs, tokens = micro.denominators["rows"], micro.denominators["tokens"]
        metrics = {
            "accuracy": (chosen > rejected).sum() / pairs,
            "reward_chosen": self.beta * chosen.sum() / pairs,
            "reward_rejected": self.beta * rejected.sum() / pairs,
            "reward_margin": self.beta * (chosen - rejected).sum() / pairs,
            "step_kl": sum(moved) / tokens,
            "entropy": now.entropy.sum() / tokens,
        }
        return LossOutput(losses.dpo(chosen, rejected, beta=self.beta).sum() / pairs, metrics)


def _pair(name: str, chosen: Row, rejected: Row) -> Row:
    """Return one row from two of single responses."""
    sides = dict(zip(SIDES, (chosen, rejected), strict=True))
    values = {f"{side}_{name}": value for side, row in sides.items() for name, value in row.values.items()}
    return Row(name, {side: row.sequences["response"] for side, row in sides.items()}, values)


@hookimpl
def alignment_optimizers() -> list[type[AlignmentOptimizer]]:
    return [OnlineDPO]
