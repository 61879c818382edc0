"""Representation misdirection for unlearning (RMU, arXiv 2403.03218): unlearn what raters disliked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import ConfigDict, Field

from alignment_core.plugin_api import AlignmentOptimizer, AlignmentRun, LossOutput, MicroBatch, Needs, Row, StepBatch

if TYPE_CHECKING:
    from torch import Tensor


class RMU(AlignmentOptimizer):
    """Steers the hidden states of disliked responses to a random direction, and keeps those of liked responses.

    The last hidden state takes the place of the paper's middle layer.
    """

    model_config = ConfigDict(title="RMU")

    name: Literal["rmu"] = "rmu"
    kl_setting: ClassVar[str | None] = "keep_weight"
    steering: float = Field(20.0, gt=0)
    """c, the length of the vector to which disliked responses are steered."""
    keep_weight: float = Field(100.0, gt=0)
    """α, the weight of the term that keeps liked responses."""

    def needs(self) -> Needs:
        return Needs(feedback=True, both_labels=True, reference=True)

    def batches(self, run: AlignmentRun) -> Iterator[StepBatch]:
        for rows in run.shuffled(run.feedback, self.batch_size, self.epochs):
            counts = {"liked": max(1, _tokens(rows, 1.0)), "disliked": max(1, _tokens(rows, 0.0))}
            yield StepBatch([Row(row.id, {"response": row.sequences["response"]}, row.values) for row in rows], counts)

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        import torch

        sequences = micro.sequences("response")
        states, reference = run.policy.hidden(sequences), run.reference.hidden(sequences)
        noise = run.random("direction")
        direction = states.new_tensor([noise.random() for _ in range(states.shape[2])])
        lengths = torch.tensor([len(sequence.completion) for sequence in sequences], device=states.device)
        present = torch.arange(states.shape[1], device=states.device) < lengths.unsqueeze(1)
        liked = micro.values("desirable").unsqueeze(1) > 0.5
        target = self.steering * direction / direction.norm()
        forget = error(states, target)[present & ~liked].sum() / micro.denominators["disliked"]
        keep = error(states, reference)[present & liked].sum() / micro.denominators["liked"]
        return LossOutput(forget + self.keep_weight * keep, {"forget": forget, "keep": keep})


def error(states: Tensor, targets: Tensor) -> Tensor:
    """Return the squared error of hidden states (..., width), averaged over the width as in the authors' code."""
    return ((states - targets) ** 2).mean(dim=-1)


def _tokens(rows: Sequence[Row], label: float) -> int:
    """Return the number of response tokens of the rows with this label."""
    return sum(len(row.sequences["response"].completion) for row in rows if row.number("desirable") == label)
