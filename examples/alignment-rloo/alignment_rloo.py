"""REINFORCE with a leave-one-out baseline (RLOO, arXiv 2402.14740): PPO's gain without its value model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from alignment_core.plugin_api import (
    AlignmentOptimizer,
    AlignmentRun,
    LossOutput,
    MicroBatch,
    Row,
    StepBatch,
    TokenSequence,
    hookimpl,
)


class RLOO(AlignmentOptimizer):
    """Samples several responses to a prompt and reinforces each by how much it beats the mean of the others."""

    model_config = ConfigDict(title="RLOO")
    prompts: ClassVar[bool] = True
    reward_model: ClassVar[bool] = True
    reference: ClassVar[bool] = True

    name: Literal["rloo"] = "rloo"
    batch_size: int = Field(8, ge=1)
    """Prompts in one optimizer step, each answered `samples` times."""
    samples: int = Field(4, ge=2)
    """Responses to each prompt."""
    kl_coef: float = Field(0.05, ge=0)
    """β, the weight of the KL penalty in a response's reward."""
    max_new_tokens: int = Field(128, ge=1)
    """Longest response in tokens."""
    missing_end_penalty: float = Field(1.0, ge=0)
    """Taken off the score of a response that reached the length limit without ending."""

    def batches(self, run: AlignmentRun) -> Iterator[StepBatch]:
        for prompts in run.shuffled(run.prompts, self.batch_size, self.epochs):
            # Everything is made from the weights of this step: `run.step` alone is enough to resume from.
            rollouts = run.generate(prompts, max_new_tokens=self.max_new_tokens, samples=self.samples)
            sequences = [rollout.sequence for rollout in rollouts]
            kl = run.policy.logps(sequences) - run.reference.logps(sequences)
            scores = run.reward.scores(sequences)
            unfinished = scores.new_tensor([not rollout.finished for rollout in rollouts])
            rewards = (scores - self.missing_end_penalty * unfinished - self.kl_coef * kl).view(-1, self.samples)
            # A response's baseline is the mean of its siblings (section 2.3), written as a factor.
            advantages = (rewards - rewards.mean(dim=1, keepdim=True)) * self.samples / (self.samples - 1)
            length = sum(sequence.targets for sequence in sequences) / len(sequences)
            run.report({"score": float(scores.mean()), "kl": float(kl.mean()), "response_length": length})
            yield StepBatch(_rows(sequences, advantages.flatten().tolist()))

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        logps = run.policy.logps(micro.sequences("response"))
        responses = micro.denominators["rows"]
        return LossOutput(-(micro.values("advantage") * logps).sum() / responses, {"logps": logps.sum() / responses})


def _rows(sequences: list[TokenSequence], advantages: list[float]) -> list[Row]:
    return [
        Row(str(i), {"response": sequence}, {"advantage": advantage})
        for i, (sequence, advantage) in enumerate(zip(sequences, advantages, strict=True))
    ]


@hookimpl
def alignment_optimizers() -> list[type[AlignmentOptimizer]]:
    return [RLOO]
