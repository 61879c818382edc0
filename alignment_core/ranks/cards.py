"""The cards of this machine, counted without loading torch."""

from __future__ import annotations

import ctypes
import os
from itertools import takewhile

from alignment_core.errors import ConfigError


def visible_cards() -> list[str]:
    """Return the NVIDIA GPUs that this machine lets its processes see, by their names in CUDA_VISIBLE_DEVICES.

    As in CUDA, what follows a number that no card has is ignored. Whether a card has a name such as `GPU-8a` or
    `MIG-1f` is not checked.
    """
    present = _present()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not present:
        return [str(number) for number in range(present)]
    named = [name for name in map(str.strip, chosen.split(",")) if name]
    return list(takewhile(lambda name: name.startswith(("GPU-", "MIG-")) or name in map(str, range(present)), named))


def _present() -> int:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        count = ctypes.c_uint()
        if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return 0
    except (OSError, AttributeError):
        return 0
    return count.value


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
    present = len(visible_cards())
    if gpus > present:
        raise ConfigError(
            "the machine has fewer cards than a stage shall use",
            where="gpus",
            got=gpus,
            expected=f"at most {present}" if present else "1: no NVIDIA GPU is visible",
            do="Lower `gpus`, look at CUDA_VISIBLE_DEVICES, or set `device: cpu` for processes that share the CPU",
        )
