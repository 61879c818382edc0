"""Identity preference optimization (IPO, arXiv 2310.12036): regress the log-ratio margin to a fixed target."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import ConfigDict, Field

from alignment_core.plugin_api import AlignmentRun, LossOutput, MicroBatch, Needs
from alignment_zoo.pairs import PairOptimizer, per_token

if TYPE_CHECKING:
    from torch import Tensor


class IPO(PairOptimizer):
    """Learns from preference pairs with a squared loss, which avoids overfitting to pairs that all raters agree on."""

    model_config = ConfigDict(title="IPO")

    name: Literal["ipo"] = "ipo"
    kl_setting: ClassVar[str | None] = "tau"
    tau: float = Field(0.1, gt=0)
    """τ of equation 17. The target margin is 1/(2τ) nats per token. Larger values stay closer to the SFT model."""

    def needs(self) -> Needs:
        return Needs(preferences=True, reference=True)

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        sequences = micro.sequences("chosen") + micro.sequences("rejected")
        ratios = run.policy.logps(sequences) - run.reference.logps(sequences)
        # Per token, as in the authors' code. Otherwise long completions reach the margin with little effort.
        chosen, rejected = per_token(ratios, sequences).chunk(2)
        pairs = micro.denominators["rows"]
        metrics = {"accuracy": (chosen > rejected).sum() / pairs, "margin": (chosen - rejected).sum() / pairs}
        return LossOutput(ipo(chosen, rejected, tau=self.tau).sum() / pairs, metrics)


def ipo(chosen: Tensor, rejected: Tensor, *, tau: float) -> Tensor:
    """Return (r_c - r_r - 1/(2τ))², shape (pairs,), where r is the log-ratio per token (equation 17)."""
    return (chosen - rejected - 1 / (2 * tau)) ** 2
