"""Simple preference optimization (SimPO, arXiv 2405.14734)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field

from alignment_core.plugin_api import AlignmentRun, LossOutput, MicroBatch
from alignment_zoo.pairs import PairOptimizer, per_token

if TYPE_CHECKING:
    from torch import Tensor


class SimPO(PairOptimizer):
    """Raises the likelihood per token of the chosen completion above that of the rejected one. Needs no reference."""

    model_config = ConfigDict(title="SimPO")

    name: Literal["simpo"] = "simpo"
    beta: float = Field(2.0, gt=0)
    """Scale of the log-likelihood per token."""
    gamma: float = Field(1.0, ge=0)
    """Lead that the chosen completion must have, after scaling."""

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        sequences = micro.sequences("chosen") + micro.sequences("rejected")
        chosen, rejected = per_token(run.policy.logps(sequences), sequences).chunk(2)
        pairs = micro.denominators["rows"]
        loss = simpo(chosen, rejected, beta=self.beta, gamma=self.gamma).sum() / pairs
        return LossOutput(loss, {"accuracy": (chosen > rejected).sum() / pairs})


def simpo(chosen: Tensor, rejected: Tensor, *, beta: float, gamma: float) -> Tensor:
    """Return -log σ(β·(p_c - p_r) - γ), shape (pairs,), where p is the log-likelihood per token (equation 6)."""
    import torch.nn.functional as F

    return -F.logsigmoid(beta * (chosen - rejected) - gamma)
