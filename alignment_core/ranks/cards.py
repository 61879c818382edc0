"""The cards of this machine, counted without loading torch."""

from __future__ import annotations

import ctypes
import os

from alignment_core.errors import ConfigError


def cards_present() -> int:
    """Return how many NVIDIA GPUs this machine lets its processes see."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        count = ctypes.c_uint()
        if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return 0
    except (OSError, AttributeError):
        return 0
    named = named_cards()
    return count.value if named is None else min(count.value, len(named))


def named_cards() -> list[str] | None:
    """Return the cards that CUDA_VISIBLE_DEVICES names, or None if it is not set. CUDA ignores what follows a -1."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    named = [name.strip() for name in visible.split(",")]
    usable = named[: named.index("-1")] if "-1" in named else named
    return [name for name in usable if name]


def check_cards(gpus: int, device: str) -> None:
    """Check that this machine has as many cards as a stage shall use.

    Args:
        gpus: processes of a stage.
        device: the device in the settings. With `cpu`, any number of processes is possible.

    Raises:
        ConfigError: it has fewer.
    """
    if gpus == 1 or device == "cpu":
        return
    present = cards_present()
    if gpus > present:
        raise ConfigError(
            "the machine has fewer cards than a stage shall use",
            where="gpus",
            got=gpus,
            expected=f"at most {present}" if present else "1: no NVIDIA GPU is visible",
            do="Lower `gpus`, look at CUDA_VISIBLE_DEVICES, or set `device: cpu` for processes that share the CPU",
        )
