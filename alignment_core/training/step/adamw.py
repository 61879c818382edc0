"""AdamW with moments in the configured precision, and its state as tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit
from bitsandbytes.optim.optimizer import Optimizer2State
from torch import Tensor, nn

from alignment_core.config import Moments
from alignment_core.errors import TrainingError

SHARED = ("qmap1", "qmap2")
"""The 256 values that 8-bit codes represent. They are constants of bitsandbytes, the same for every weight."""


def make_adamw(
    weights: Iterable[nn.Parameter], moments: Moments, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return AdamW with 32-bit moments (PyTorch) or 8-bit ones (bitsandbytes: paged on a GPU, plain on the CPU).

    On a GPU, PyTorch updates all weights in one launch. On the CPU, it does so weight by weight.

    Raises:
        TrainingError: 8-bit moments do not work on this device.
    """
    parameters = list(weights)
    if moments == "32bit":
        fused = all(parameter.is_cuda for parameter in parameters)
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=fused or None)
    kind = AdamW8bit if parameters[0].device.type == "cpu" else PagedAdamW8bit
    _try(kind, parameters[0].device)
    optimizer: torch.optim.Optimizer = kind(parameters, lr=learning_rate, weight_decay=weight_decay)
    return optimizer


def _try(kind: Any, device: torch.device) -> None:
    """Take one step, to detect an unsupported device before training starts.

    Raises:
        TrainingError: the step fails, or its result is wrong.
    """
    weight = nn.Parameter(torch.ones(2**17, device=device))
    weight.grad = torch.ones_like(weight)
    try:
        kind([weight], lr=0.5).step()
    except (RuntimeError, NotImplementedError, AttributeError, KeyError, OSError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise _does_not_run(device, reason) from error
    # The first step is lr·g/(|g| + eps), regardless of how the moments are rounded.
    if not torch.allclose(weight.detach(), torch.full_like(weight, 0.5), atol=0.05):
        raise _does_not_run(device, "a wrong result in a test step")


def _does_not_run(device: torch.device, reason: str) -> TrainingError:
    return TrainingError(
        "8-bit AdamW does not run on this device",
        where="adamw: paged_8bit",
        got=f"{reason} on {device}",
        do="Set `adamw: 32bit`, which takes 6 more bytes per trained weight",
    )


def moments_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Return the optimizer's state of a weight; empty before its first step."""
    state: dict[str, Any] = optimizer.state.get(parameter, {})
    return {name: torch.as_tensor(value) for name, value in state.items() if name not in SHARED}


def restore_moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, saved: dict[str, Tensor]) -> None:
    """Restore what `moments_of` returned."""
    state = optimizer.state[parameter]
    if isinstance(optimizer, Optimizer2State):
        # Copy into its own buffers, so that paged moments are paged again.
        group = optimizer.param_groups[0]
        place = next(i for i, other in enumerate(group["params"]) if other is parameter)
        optimizer.init_state(group, parameter, 0, place)
        for name, value in saved.items():
            state[name] = state[name].copy_(value) if isinstance(state[name], Tensor) else value.item()
        return
    fused = optimizer.param_groups[0]["fused"]
    for name, value in saved.items():
        # Moments are on the device of their weight. So is the step counter of a fused AdamW, and no other.
        state[name] = value.to(parameter.device) if value.dim() or fused else value
