"""Repeat the operations of a step as one CUDA graph, because launching them one by one takes longer than they do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from alignment_core.errors import ran_out_of_memory

logger = logging.getLogger(__name__)


def can_capture(device: torch.device) -> bool:
    """Return whether steps of a fixed shape are worth it, because the device repeats them as a graph."""
    return device.type == "cuda"


def captured(step: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor] | None:
    """Return a function that repeats the step on the same tensors.

    None for a model whose step cannot be captured, because it waits for a value on the host. That is logged.

    Args:
        step: reads and writes only tensors that stay where they are. It may be called twice in place of once.
    """
    try:
        return _capture(step, device)
    except RuntimeError as error:
        if ran_out_of_memory(error):
            raise
        _warn_once(f"responses are sampled without a CUDA graph, which is slower: {error}")
        return None


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _capture(step: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    # A weight that autocast keeps in another precision would not be there, or not be the same, in a later replay.
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.cuda.device(device):
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                step()  # libraries allocate their workspaces in the first call, which a capture must not record
            torch.cuda.current_stream(device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                logits = step()
    finally:
        torch.set_autocast_cache_enabled(kept)

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay
