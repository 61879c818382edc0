"""Time the steps of a trainer of transformers or TRL."""

from __future__ import annotations

from typing import Any, Protocol

from transformers import TrainerCallback


class StepMeter(Protocol):
    """What is notified, such as `world.Meter`."""

    def start(self) -> None: ...
    def step(self) -> None: ...


class Steps(TrainerCallback):  # type: ignore[misc]
    """Notifies the meter of the start of training and of each optimizer step."""

    def __init__(self, meter: StepMeter) -> None:
        self.meter = meter

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.meter.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.meter.step()
