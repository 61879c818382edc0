"""Direct preference optimization (arXiv 2305.18290)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from alignment_core import losses
from alignment_core.plugin_api import (
    Advice,
    AlignmentOptimizer,
    AlignmentRun,
    LossOutput,
    MicroBatch,
    Needs,
    StepBatch,
    hookimpl,
)
from alignment_plugins.falling_rewards import both_fall

MEMORIZED = 0.2
"""Share of pairs by which training accuracy may exceed held-out accuracy."""


class DPO(AlignmentOptimizer):
    """Learns from preference pairs with a classification loss. Needs no reward model and no sampling."""

    model_config = ConfigDict(title="DPO")

    kl_setting: ClassVar[str | None] = "beta"

    name: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0)
    """Strength of the KL penalty. Larger values stay closer to the SFT model."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Assumed probability that the two completions of a pair are swapped."""
    margin_scale: float = Field(0.0, ge=0)
    """Weight of the margin of each pair (in score points), subtracted from beta times the log-ratio difference."""
    length_normalised: bool = False
    """Divide each log-ratio by the length of the completion in tokens."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of an added SFT loss: the negative log-likelihood per token of the chosen completion."""

    def needs(self) -> Needs:
        return Needs(preferences=True, reference=True)

    def batches(self, run: AlignmentRun) -> Iterator[StepBatch]:
        for rows in run.shuffled(run.preferences, self.batch_size, self.epochs):
            tokens = sum(row.sequences["chosen"].targets for row in rows)
            yield StepBatch(rows, denominators={"chosen_tokens": tokens})

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        sequences = micro.sequences("chosen") + micro.sequences("rejected")
        logps = run.policy.logps(sequences)
        ratios = logps - run.reference.logps(sequences)
        lengths = ratios.new_tensor([sequence.targets for sequence in sequences])
        if self.length_normalised:
            ratios = ratios / lengths
        chosen, rejected = ratios.chunk(2)
        margin = self.margin_scale * micro.values("margin")
        per_pair = losses.dpo(chosen, rejected, beta=self.beta, label_smoothing=self.label_smoothing, margin=margin)
        pairs = micro.denominators["rows"]
        loss = per_pair.sum() / pairs
        chosen_logps, rejected_logps = logps.chunk(2)
        chosen_lengths, rejected_lengths = lengths.chunk(2)
        if self.sft_weight:
            loss = loss - self.sft_weight * chosen_logps.sum() / micro.denominators["chosen_tokens"]
        return LossOutput(
            loss,
            {
                "accuracy": (chosen > rejected).sum() / pairs,
                "reward_chosen": self.beta * chosen.sum() / pairs,
                "reward_rejected": self.beta * rejected.sum() / pairs,
                "reward_margin": self.beta * (chosen - rejected).sum() / pairs,
                "logps_chosen": chosen_logps.sum() / pairs,
                "logps_rejected": rejected_logps.sum() / pairs,
                "length_chosen": chosen_lengths.sum() / pairs,
                "length_rejected": rejected_lengths.sum() / pairs,
            },
        )

    def advice(self, trained: Mapping[str, Any], evaluated: Mapping[str, Any]) -> Sequence[Advice]:
        do = "raise `optimizer.beta` or `optimizer.sft_weight`, or lower `optimizer.learning_rate`"
        found = list(both_fall(trained, "reward_chosen", "reward_rejected", do))
        accuracy, held_out = trained.get("accuracy"), evaluated.get("implicit_reward_accuracy")
        if accuracy is not None and held_out is not None and accuracy - held_out > MEMORIZED:
            found.append(
                Advice(
                    "pairs-memorized",
                    f"`accuracy` is {100 * accuracy:.0f} % on the training pairs, and {100 * held_out:.0f} % on "
                    "held-out pairs",
                    "the policy has memorized the pairs more than it has learned what people prefer",
                    "lower `optimizer.epochs` or `optimizer.learning_rate`, or add pairs on other prompts",
                    "our choice",
                )
            )
        return found


@hookimpl
def alignment_optimizers() -> list[type[AlignmentOptimizer]]:
    return [DPO]
