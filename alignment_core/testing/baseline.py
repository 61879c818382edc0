"""The baseline for the cost check: a minimal DPO."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from alignment_core import losses
from alignment_core.plugin_api import AlignmentOptimizer, AlignmentRun, LossOutput, MicroBatch, Needs, StepBatch


class Baseline(AlignmentOptimizer):
    """DPO without options."""

    name: Literal["baseline"] = "baseline"

    def needs(self) -> Needs:
        return Needs(preferences=True, reference=True)

    def batches(self, run: AlignmentRun) -> Iterator[StepBatch]:
        yield StepBatch(run.preferences[:8])

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        sequences = micro.sequences("chosen") + micro.sequences("rejected")
        chosen, rejected = (run.policy.logps(sequences) - run.reference.logps(sequences)).chunk(2)
        return LossOutput(losses.dpo(chosen, rejected, beta=0.1).sum() / micro.denominators["rows"])
