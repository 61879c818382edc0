"""The environment and the measurements that both sides share."""

from __future__ import annotations

from typing import Any

from against_trl.world import Meter, memory, warm_up

__all__ = ["Meter", "measured", "warm_up"]


def measured(meter: Meter) -> dict[str, Any]:
    """Return seconds and memory of the training.

    `peak` is the peak of the process. `peak_above_model` is what training adds to the libraries and the loaded models.
    """
    found = meter.result()
    return {
        "steps": found["steps"],
        "cpu": found["cpu"],
        "wall": found["wall"],
        "peak": memory("VmHWM"),
        "peak_above_model": found["peak"],
    }
