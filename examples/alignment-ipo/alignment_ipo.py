"""Identity preference optimization (arXiv 2310.12036): regress the log-ratio margin to a fixed target."""

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
    StepBatch,
    hookimpl,
)


class IPO(AlignmentOptimizer):
    """Learns from preference pairs with a squared loss, which avoids overfitting to pairs that all raters agree on."""

    model_config = ConfigDict(title="IPO")

    name: Literal["ipo"] = "ipo"
    tau: float = Field(0.1, gt=0)
    """τ of equation 17. The target margin is 1/(2τ) nats per token. Larger values stay closer to the SFT model."""

    def needs(self) -> Needs:
        return Needs(preferences=True, reference=True)

    def batches(self, run: AlignmentRun) -> Iterator[StepBatch]:
        for rows in run.shuffled(run.preferences, self.batch_size, self.epochs):
            yield StepBatch(rows)

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        sequences = micro.sequences("chosen") + micro.sequences("rejected")
        ratios = run.policy.logps(sequences) - run.reference.logps(sequences)
        # Per token, as in the authors' code. Otherwise long completions reach the margin with little effort.
        chosen, rejected = (ratios / ratios.new_tensor([s.targets for s in sequences])).chunk(2)
        errors = (chosen - rejected - 1 / (2 * self.tau)) ** 2
        pairs = micro.denominators["rows"]
        metrics = {"accuracy": (chosen > rejected).sum() / pairs, "margin": (chosen - rejected).sum() / pairs}
        return LossOutput(errors.sum() / pairs, metrics)


@hookimpl
def alignment_optimizers() -> list[type[AlignmentOptimizer]]:
    return [IPO]
