"""Set up the GPU of a stage's process before anything is loaded onto it."""

from __future__ import annotations

import platform

import torch

WSL = "microsoft"
"""Part of the name of WSL's kernel. There, the driver moves what does not fit on the card into the host's memory, which
is many times slower, and raises no error."""


def use_card(device: torch.device, memory_gb: float | None) -> None:
    """Make this card the process's current one, and limit PyTorch to `memory_gb` of it.

    Libraries that do not name a device, such as bitsandbytes, use the current one. Above the limit, PyTorch raises its
    out-of-memory error, and the token budget is halved.

    Args:
        device: the stage's device. Nothing happens if it is not a GPU.
        memory_gb: from the settings, in GiB; None for no limit, or on WSL for what is free.
    """
    if device.type != "cuda":
        return
    if device.index is not None:
        torch.cuda.set_device(device)
    limit = None if memory_gb is None else memory_gb * 2**30
    free, total = torch.cuda.mem_get_info(device)
    if WSL in platform.release().lower():
        limit = min(free, limit or free)
    if limit is not None:
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
