"""Binary classifier optimization (BCO, arXiv 2404.04656): separate liked and disliked responses by their reward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import ConfigDict, Field

from alignment_core.plugin_api import AlignmentOptimizer, AlignmentRun, LossOutput, MicroBatch, Needs, StepBatch

if TYPE_CHECKING:
    from torch import Tensor


class BCO(AlignmentOptimizer):
    """Learns from thumbs up and down with a logistic loss around a shift that follows the rewards of both classes.

    The paper's second part, which weights the two classes if their prompts differ, is left out.
    """

    model_config = ConfigDict(title="BCO")

    name: Literal["bco"] = "bco"
    kl_setting: ClassVar[str | None] = "beta"
    beta: float = Field(0.1, gt=0)
    """Scale of the reward, the log-ratio to the SFT model. Larger values stay closer to the SFT model."""
    decay: float = Field(0.9, ge=0, lt=1)
    """Share of the past in the moving averages of the rewards, from which the shift is computed."""

    def needs(self) -> Needs:
        return Needs(feedback=True, both_labels=True, reference=True)

    def batches(self, run: AlignmentRun) -> Iterator[StepBatch]:
        for rows in run.shuffled(run.feedback, self.batch_size, self.epochs):
            good = sum(row.number("desirable") for row in rows)
            counts = {"good": max(1.0, good), "bad": max(1.0, len(rows) - good)}
            yield StepBatch(rows, denominators=counts, constants={"shift": self._shift(run)})

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        sequences = micro.sequences("response")
        rewards = self.beta * (run.policy.logps(sequences) - run.reference.logps(sequences))
        good, weight, counts = micro.values("desirable"), micro.values("weight"), micro.denominators
        loss = (weight * bco(rewards, good, shift=micro.constants["shift"])).sum() / counts["rows"]
        metrics = {
            "reward_good": (rewards * good).sum() / counts["good"],
            "reward_bad": (rewards * (1 - good)).sum() / counts["bad"],
            "desirable_share": good.sum() / counts["rows"],
        }
        return LossOutput(loss, metrics)

    def _shift(self, run: AlignmentRun) -> float:
        """Return δ, the mean of the moving averages of both rewards. At the start, all rewards are 0."""
        state = run.state
        state.setdefault("averages", {"reward_good": 0.0, "reward_bad": 0.0})
        # A run that was stopped within a step builds its batch again, and must not count the last rewards twice.
        if state.get("counted", 0) < run.step:
            state["counted"] = run.step
            share = run.metrics["desirable_share"]
            for name, present in {"reward_good": share > 0, "reward_bad": share < 1}.items():
                if present:
                    moved = self.decay * state["averages"][name] + (1 - self.decay) * run.metrics[name]
                    state["averages"][name] = moved
        return float(sum(state["averages"].values())) / 2


def bco(rewards: Tensor, good: Tensor, *, shift: float) -> Tensor:
    """Return -log σ(r - δ) for liked and -log σ(-(r - δ)) for disliked responses, shape (rows,).

    Args:
        rewards: β·(log π - log π_ref) of each response.
        good: 1 if the response was liked, else 0.
        shift: δ.
    """
    import torch.nn.functional as F

    return -F.logsigmoid((2 * good - 1) * (rewards - shift))
