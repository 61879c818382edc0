"""Direct reward optimization (DRO-V, arXiv 2405.19107): a policy and a value function from single responses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import ConfigDict, Field

from alignment_core.plugin_api import (
    AlignmentOptimizer,
    AlignmentRun,
    LossOutput,
    MicroBatch,
    Needs,
    StepBatch,
    TokenSequence,
)

if TYPE_CHECKING:
    from torch import Tensor


class DRO(AlignmentOptimizer):
    """Learns from thumbs of one response per prompt. A learned value of the prompt tells good luck from good answers.

    The value is a linear head on the SFT model's hidden state at the end of the prompt. The paper trains a model of its
    own for it.
    """

    model_config = ConfigDict(title="DRO")

    name: Literal["dro"] = "dro"
    kl_setting: ClassVar[str | None] = "kl_coef"
    kl_coef: float = Field(0.1, gt=0)
    """τ, the weight of the KL penalty, in units of the reward, which is 1 for a liked and 0 for a disliked response."""

    def needs(self) -> Needs:
        return Needs(feedback=True, reference=True)

    def parameters(self, width: int) -> Mapping[str, Tensor | float]:
        import torch

        return {"value_weight": torch.zeros(width), "value_bias": 0.0}

    def batches(self, run: AlignmentRun) -> Iterator[StepBatch]:
        for rows in run.shuffled(run.feedback, self.batch_size, self.epochs):
            yield StepBatch(rows)

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        sequences, rewards = micro.sequences("response"), micro.values("desirable")
        ratios = run.policy.logps(sequences) - run.reference.logps(sequences)
        # The state at the last token of the prompt, with that token as the only one of the completion.
        states = run.reference.hidden([TokenSequence(each.prompt, each.start - 1) for each in sequences])[:, 0]
        values = states @ run.parameters["value_weight"] + run.parameters["value_bias"]
        per_row = micro.values("weight") * dro(rewards, values, ratios, tau=self.kl_coef)
        rows = micro.denominators["rows"]
        metrics = {"value": values.sum() / rows, "reward": (self.kl_coef * ratios).sum() / rows}
        return LossOutput(per_row.sum() / rows, metrics)


def dro(rewards: Tensor, values: Tensor, ratios: Tensor, *, tau: float) -> Tensor:
    """Return ½·(r - V - τ·log(π/π_ref))², shape (rows,), with the gradients of algorithm 1.

    That of the policy is divided by τ, so that its step does not vanish with τ.
    """
    policy = (rewards - values.detach() - tau * ratios) ** 2 / (2 * tau)
    value = (rewards - values - tau * ratios.detach()) ** 2 / 2
    error = value.detach()
    return error + (policy - policy.detach()) + (value - error)
