"""The predicted time of a stage."""

from __future__ import annotations

import pytest

from alignment_core.forecast.speed_probe import Speed
from alignment_core.training.demand import Demand


@pytest.mark.parametrize(("checkpointing", "factor"), [(False, 1.0), (4, 1.125), (2, 1.25), (True, 1.5)])
def test_recomputing_a_layer_adds_a_forward_pass_to_a_forward_and_a_backward(checkpointing: int, factor: float) -> None:
    """With frozen weights, both take the same time. Reading takes no longer."""
    speed = Speed(start=5.0, learn=0.5, read=0.25, token_step=1.0)
    assert speed.seconds(Demand(learned=100, read=8), checkpointing) == 5 + 50 * factor + 2
