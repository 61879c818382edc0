"""What the optimizers share that learn from preference pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from alignment_core.plugin_api import AlignmentOptimizer, AlignmentRun, Needs, StepBatch, TokenSequence

if TYPE_CHECKING:
    from torch import Tensor


class PairOptimizer(AlignmentOptimizer):
    """Learns from preference pairs, and needs nothing else."""

    def needs(self) -> Needs:
        return Needs(preferences=True)

    def batches(self, run: AlignmentRun) -> Iterator[StepBatch]:
        for rows in run.shuffled(run.preferences, self.batch_size, self.epochs):
            tokens = sum(row.sequences["chosen"].targets for row in rows)
            yield StepBatch(rows, denominators={"chosen_tokens": tokens})


def per_token(values: Tensor, sequences: Sequence[TokenSequence]) -> Tensor:
    """Divide one value per sequence by its number of target tokens, shape (sequences,)."""
    return values / values.new_tensor([sequence.targets for sequence in sequences])
