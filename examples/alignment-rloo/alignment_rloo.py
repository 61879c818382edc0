"""REINFORCE with a leave-one-out baseline (RLOO, arXiv 2402.14740): on-policy training without a value model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import ConfigDict, Field

from alignment_core.plugin_api import (
    AlignmentOptimizer,
    AlignmentRun,
    LossOutput,
    MicroBatch,
    Needs,
    Row,
    StepBatch,
    TokenSequence,
    hookimpl,
)


class RLOO(AlignmentOptimizer):
    """Samples several responses per prompt and reinforces each by how much it exceeds the mean of the others."""

    model_config = ConfigDict(title="RLOO")

    name: Literal["rloo"] = "rloo"
    batch_size: int = Field(8, ge=1)
    """Prompts per optimizer step. `samples` responses are sampled for each."""
    samples: int = Field(4, ge=2)
    """Responses per prompt."""
    kl_coef: float = Field(0.05, ge=0)
    """β, the weight of the KL penalty in the reward of a response."""
    max_new_tokens: int = Field(128, ge=1)
    """Maximum length of a response, in tokens."""
    missing_end_penalty: float = Field(1.0, ge=0)
    """Subtracted from the score of a response that reaches the length limit without ending."""

    def needs(self) -> Needs:
        return Needs(prompts=True, reward=True, reference=True)

    def batches(self, run: AlignmentRun) -> Iterator[StepBatch]:
        for prompts in run.shuffled(run.prompts, self.batch_size, self.epochs):
            # Everything is computed from the current weights, so a run can resume from `run.step` alone.
            rollouts = run.generate(prompts, max_new_tokens=self.max_new_tokens, samples=self.samples)
            sequences = [rollout.sequence for rollout in rollouts]
            kl = run.policy.logps(sequences) - run.reference.logps(sequences)
            scores = run.rewards(rollouts)
            unfinished = scores.new_tensor([not rollout.finished for rollout in rollouts])
            rewards = (scores - self.missing_end_penalty * unfinished - self.kl_coef * kl).view(-1, self.samples)
            # The baseline of a response is the mean of the others (section 2.3), written here as a factor.
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
