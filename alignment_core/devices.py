"""Whether a computation is one for a card: it runs on one, or it is planned for one on fake tensors of the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_planned: ContextVar[bool] = ContextVar("planned", default=False)


def for_card(tensor: Tensor) -> bool:
    """Return whether to compute with this tensor as on a card. Ask this wherever a CPU is treated differently."""
    return tensor.is_cuda or _planned.get()


@contextmanager
def planned_for_card(planned: bool) -> Iterator[None]:
    """Compute as on a card inside the context, if `planned`, although the tensors are on the CPU and fake.

    Fake tensors on `cuda` would be simpler, but they have no backward where PyTorch finds no CUDA device.
    """
    token = _planned.set(planned)
    try:
        yield
    finally:
        _planned.reset(token)
