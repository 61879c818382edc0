"""Trust region DPO (TR-DPO, arXiv 2404.09656): DPO whose reference follows the policy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from alignment_core import losses
from alignment_core.plugin_api import AlignmentRun, LossOutput, MicroBatch, Needs, StepBatch
from alignment_zoo.pairs import PairOptimizer


class TRDPO(PairOptimizer):
    """DPO with a reference that moves towards the policy, so that the policy may go further than DPO's."""

    model_config = ConfigDict(title="TR-DPO")

    name: Literal["tr_dpo"] = "tr_dpo"
    kl_setting: ClassVar[str | None] = "beta"
    beta: float = Field(0.1, gt=0)
    """Strength of the KL penalty to the present reference."""
    alpha: float = Field(0.6, gt=0, le=1)
    """Share of the policy in the reference after an update. 1 replaces the reference by the policy."""
    every: int = Field(32, ge=1)
    """Steps between updates of the reference."""

    def needs(self) -> Needs:
        return Needs(preferences=True, snapshots=("moving_reference",))

    def batches(self, run: AlignmentRun) -> Iterator[StepBatch]:
        for batch in super().batches(run):
            if run.step and run.step % self.every == 0:
                run.snapshot("moving_reference", mix=self.alpha)
            yield batch

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        sequences = micro.sequences("chosen") + micro.sequences("rejected")
        reference = run.role("moving_reference").logps(sequences)
        chosen, rejected = (run.policy.logps(sequences) - reference).chunk(2)
        pairs = micro.denominators["rows"]
        metrics = {
            "accuracy": (chosen > rejected).sum() / pairs,
            "reward_margin": self.beta * (chosen - rejected).sum() / pairs,
        }
        return LossOutput(losses.dpo(chosen, rejected, beta=self.beta).sum() / pairs, metrics)
