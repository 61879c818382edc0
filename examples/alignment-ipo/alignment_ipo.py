"""Identity preference optimization (arXiv 2310.12036): the log-ratio margin regressed to a fixed size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from alignment_core.plugin_api import AlignmentOptimizer, AlignmentRun, LossOutput, MicroBatch, StepBatch, hookimpl


class IPO(AlignmentOptimizer):
    """Learns from preference pairs by least squares; a pair that people always agree on is not pushed for ever."""

    model_config = ConfigDict(title="IPO")
    preferences: ClassVar[bool] = True
    reference: ClassVar[bool] = True

    name: Literal["ipo"] = "ipo"
    tau: float = Field(0.1, gt=0)
    """τ of equation 17: the log-ratio margin (nats per token) aims at 1/(2τ); larger stays closer to the SFT model."""

    def batches(self, run: AlignmentRun) -> Iterator[StepBatch]:
        for rows in run.shuffled(run.preferences, self.batch_size, self.epochs):
            yield StepBatch(rows)

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        sequences = micro.sequences("chosen") + micro.sequences("rejected")
        ratios = run.policy.logps(sequences) - run.reference.logps(sequences)
        # Per token, as its authors' code does it: else long completions get their margin for nothing.
        chosen, rejected = (ratios / ratios.new_tensor([s.targets for s in sequences])).chunk(2)
        errors = (chosen - rejected - 1 / (2 * self.tau)) ** 2
        pairs = micro.denominators["rows"]
        metrics = {"accuracy": (chosen > rejected).sum() / pairs, "margin": (chosen - rejected).sum() / pairs}
        return LossOutput(errors.sum() / pairs, metrics)


@hookimpl
def alignment_optimizers() -> list[type[AlignmentOptimizer]]:
    return [IPO]
