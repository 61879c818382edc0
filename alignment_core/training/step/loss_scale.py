"""The factor on the loss that keeps gradients within the range of float16.

On a GPU without bf16, activations and their gradients are float16, which ends at 65504 and loses everything below 6e-8.
Gradients of a mean over a step are far below 1, so the loss is multiplied by a power of two before the backward pass
and the gradients of the weights, which are float32, are divided by it. This changes no bit unless a value would leave
the range. If one does, the step is repeated with half the factor: no step is skipped.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

FIRST = 2.0**16
GROWTH_STEPS = 1000
"""Steps without an overflow after which the factor is doubled. It had adapted to larger gradients."""


class LossScale:
    """The factor, and the steps since it last changed.

    Attributes:
        factor: a power of two; 1 if the model does not compute in float16.
        steps: steps since the factor last changed.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.factor = FIRST if dtype == torch.float16 else 1.0
        self.steps = 0

    def remove(self, weights: Iterable[torch.nn.Parameter]) -> bool:
        """Divide the gradients of a step by the factor. Return whether they are right.

        If not, the factor is now half as large, and they have to be computed again.
        """
        if self.factor == 1:
            return True
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        finite = torch.stack([gradient.isfinite().all() for gradient in gradients]).all()
        if not finite:
            self.factor, self.steps = self.factor / 2, 0
            return False
        torch._foreach_div_(gradients, self.factor)
        self.steps += 1
        if self.steps == GROWTH_STEPS:
            self.factor, self.steps = self.factor * 2, 0
        return True

    def to_json(self) -> dict[str, float]:
        """Return the state for a checkpoint."""
        return {"factor": self.factor, "steps": self.steps}

    def restore(self, saved: dict[str, float]) -> None:
        """Continue from a checkpoint."""
        self.factor, self.steps = saved["factor"], int(saved["steps"])
