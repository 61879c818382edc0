"""Self-play fine-tuning (SPIN, arXiv 2401.01335): tell demonstrations from the answers of an earlier self."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

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
)

if TYPE_CHECKING:
    from torch import Tensor


class SPIN(AlignmentOptimizer):
    """Learns from demonstrations alone. The policy of the epoch before answers the same prompts as the opponent.

    Of a demonstration with several turns, the last answer counts.
    """

    model_config = ConfigDict(title="SPIN")

    name: Literal["spin"] = "spin"
    kl_setting: ClassVar[str | None] = "scale"
    epochs: int = Field(3, ge=1, le=100_000)
    """Passes over the demonstrations. After each, the policy becomes the opponent."""
    scale: float = Field(0.1, gt=0)
    """λ of equation 4.7. Larger values stay closer to the opponent."""
    max_new_tokens: int = Field(128, ge=1)
    """Maximum length of the opponent's answers, in tokens."""

    def needs(self) -> Needs:
        return Needs(demonstrations=True, prompts=True, snapshots=("opponent",))

    def batches(self, run: AlignmentRun) -> Iterator[StepBatch]:
        per_epoch = self.total_steps(run) // self.epochs
        for rows in run.shuffled(run.demonstrations, self.batch_size, self.epochs):
            if run.step and run.step % per_epoch == 0:
                run.snapshot("opponent")
            real = [last_answer(row.sequences["demonstration"]) for row in rows]
            prompts = [
                Row(row.id, {"prompt": TokenSequence(each.prompt, each.start)})
                for row, each in zip(rows, real, strict=True)
            ]
            own = run.generate(prompts, max_new_tokens=self.max_new_tokens, role="opponent")
            yield StepBatch(
                [
                    Row(row.id, {"real": each, "own": rollout.sequence})
                    for row, each, rollout in zip(rows, real, own, strict=True)
                ]
            )

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        sequences = micro.sequences("real") + micro.sequences("own")
        ratios = run.policy.logps(sequences) - run.role("opponent").logps(sequences)
        real, own = ratios.chunk(2)
        rows = micro.denominators["rows"]
        metrics = {"accuracy": (real > own).sum() / rows, "margin": self.scale * (real - own).sum() / rows}
        return LossOutput(spin(real, own, scale=self.scale).sum() / rows, metrics)


def spin(real: Tensor, own: Tensor, *, scale: float) -> Tensor:
    """Return log(1 + exp(-λ·(r(real) - r(own)))), shape (rows,), where r = log π - log π_opponent (equation 4.7)."""
    import torch.nn.functional as F

    return F.softplus(-scale * (real - own))


def last_answer(sequence: TokenSequence) -> TokenSequence:
    """Return a demonstration with everything before its last run of target tokens as the prompt."""
    if sequence.mask is None:
        return sequence
    end = len(sequence.mask)
    while not sequence.mask[end - 1]:
        end -= 1
    start = end
    while start and sequence.mask[start - 1]:
        start -= 1
    return TokenSequence(sequence.ids[: sequence.start + end], sequence.start + start)
