"""The noise of a response, which depends on its key and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alignment_core.seeds import seed_of


def uniforms(keys: Sequence[str], count: int) -> Tensor:
    """Return `count` numbers in [0, 1) for each key, shape (keys, count), float64, on the CPU."""
    return torch.stack([_uniforms(key, count) for key in keys])


def _uniforms(key: str, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed_of(key))
    return torch.rand(count, generator=generator, dtype=torch.float64)
