"""Odds ratio preference optimization (ORPO, arXiv 2403.07691): SFT and preferences in one loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field

from alignment_core.plugin_api import AlignmentRun, LossOutput, MicroBatch
from alignment_zoo.pairs import PairOptimizer, per_token

if TYPE_CHECKING:
    from torch import Tensor


class ORPO(PairOptimizer):
    """Imitates the chosen completion and lowers the odds of the rejected one. Meant to replace SFT: set `sft: null`."""

    model_config = ConfigDict(title="ORPO")

    name: Literal["orpo"] = "orpo"
    odds_weight: float = Field(0.1, gt=0)
    """λ of equation 6, the weight of the odds ratio beside the SFT loss."""

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        sequences = micro.sequences("chosen") + micro.sequences("rejected")
        logps = run.policy.logps(sequences)
        chosen, rejected = per_token(logps, sequences).chunk(2)
        pairs = micro.denominators["rows"]
        imitation = -logps.chunk(2)[0].sum() / micro.denominators["chosen_tokens"]
        odds = odds_ratio(chosen, rejected).sum() / pairs
        metrics = {"sft_loss": imitation, "odds_loss": odds, "accuracy": (chosen > rejected).sum() / pairs}
        return LossOutput(imitation + self.odds_weight * odds, metrics)


def odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return -log σ(log odds_c - log odds_r), shape (pairs,) (equation 7).

    The odds are p / (1 - p), where log p is the log-likelihood per token.
    """
    import torch.nn.functional as F

    return -F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(logp: Tensor) -> Tensor:
    # log(1 - exp(logp)), exact for probabilities near 1. At 1 itself, the odds would be infinite.
    bounded = logp.clamp_max(-1e-6)
    return logp - (-bounded.expm1()).log()
