"""Run the experts of a mixture on fake tensors, where the matrix products of transformers accept only bf16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

IMPLEMENTATION = "alignment_shapes"


def measure_experts(model: PreTrainedModel) -> None:
    """Make the stacked experts compute only the shapes of their results, with the tensors that training keeps."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(module, "_apply_gate") and config is not None:
            config._experts_implementation = IMPLEMENTATION


def _experts(self: Any, states: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Stand in for transformers' `grouped_mm_experts_forward`: each token runs through `index.shape[-1]` experts."""
    chosen = index.shape[-1]
    rows = states.repeat_interleave(chosen, dim=0)
    gated = getattr(self, "has_gate", True)
    inner = _product(self, rows, self.gate_up_proj if gated else self.up_proj)
    inner = self._apply_gate(inner) if gated else self.act_fn(inner)
    mixed = _product(self, inner, self.down_proj) * weights.reshape(-1, 1)
    return mixed.view(states.shape[0], chosen, -1).sum(dim=1).to(states.dtype)


def _product(module: nn.Module, rows: Tensor, stacked: Tensor) -> Tensor:
    width = stacked.shape[-1 if getattr(module, "is_transposed", False) else -2]
    product: Tensor = _Product.apply(rows, stacked, width)  # type: ignore[no-untyped-call]
    return product


class _Product(torch.autograd.Function):
    """The shapes of a matrix product per expert, and of its gradients."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, stacked: Tensor, width: int) -> Tensor:
        ctx.save_for_backward(rows, stacked)
        return rows.new_empty(rows.shape[0], width)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, stacked = ctx.saved_tensors
        return (
            torch.empty_like(rows) if ctx.needs_input_grad[0] else None,
            torch.empty_like(stacked) if ctx.needs_input_grad[1] else None,
            None,
        )


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _experts)
