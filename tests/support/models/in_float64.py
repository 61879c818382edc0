"""Training in float64, where sums in another order differ by less than 1e-12, so that a real difference shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from alignment_core.training.run import Run


@contextmanager
def in_float64(run: Run) -> Iterator[None]:
    """Convert the weights of an open run, and make what asks for float32 get float64 during the block."""
    run.roles.model.double()
    run.roles.heads.double()
    torch.set_default_dtype(torch.float64)
    try:
        with patch.object(torch, "float32", torch.float64), patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)
