"""Contrastive preference optimization (CPO, arXiv 2401.08417): DPO with a uniform reference, and an SFT loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field

from alignment_core.plugin_api import AlignmentRun, LossOutput, MicroBatch
from alignment_zoo.pairs import PairOptimizer

if TYPE_CHECKING:
    from torch import Tensor


class CPO(PairOptimizer):
    """Contrasts the two completions without a reference, while an SFT loss keeps the chosen one likely."""

    model_config = ConfigDict(title="CPO")

    name: Literal["cpo"] = "cpo"
    beta: float = Field(0.1, gt=0)
    """Scale of the difference of log-likelihoods."""
    sft_weight: float = Field(1.0, ge=0)
    """Weight of the SFT loss: the negative log-likelihood per token of the chosen completion."""

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        chosen, rejected = run.policy.logps(micro.sequences("chosen") + micro.sequences("rejected")).chunk(2)
        pairs = micro.denominators["rows"]
        imitation = -chosen.sum() / micro.denominators["chosen_tokens"]
        metrics = {"sft_loss": imitation, "accuracy": (chosen > rejected).sum() / pairs}
        loss = cpo(chosen, rejected, beta=self.beta).sum() / pairs
        return LossOutput(loss + self.sft_weight * imitation, metrics)


def cpo(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Return -log σ(β·(log π(chosen) - log π(rejected))), shape (pairs,) (equation 3)."""
    import torch.nn.functional as F

    return -F.logsigmoid(beta * (chosen - rejected))
