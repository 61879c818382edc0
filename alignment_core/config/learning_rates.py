"""How far a training can move the weights, and the learning rate that a number of steps needs."""

from __future__ import annotations

import math

from alignment_core.config.training import StepSettings

FAR_ENOUGH = 0.01
"""Sum of the learning rates of all steps. On SmolLM2, DPO followed a rule with it, and hardly with a third of it.
Adapters of models with 7B weights are trained with 0.001 to 0.01: Zephyr's DPO, peak 5e-6, 480 to 3800 steps."""
LARGEST_RATE = 1e-3
"""Three times as much gave SmolLM2 a KL of 28 nats in ten steps."""


def distance(settings: StepSettings, steps: float) -> float:
    """Return the sum of the learning rates of all steps. No weight moves much farther: Adam's steps are bounded."""
    return settings.learning_rate * steps * mean_factor(settings)


def mean_factor(settings: StepSettings) -> float:
    """Return the mean of the schedule, as a share of its peak."""
    low = {"cosine": 0.1, "linear": 0.0, "constant": 1.0}[settings.schedule]
    decay = (1 + low) / 2
    return settings.warmup_fraction * 0.5 + (1 - settings.warmup_fraction) * decay


def suitable_rate(settings: StepSettings, steps: float, most: float = LARGEST_RATE) -> float:
    """Return the peak learning rate with which so many steps move far enough, with one significant digit."""
    rate = FAR_ENOUGH / (max(steps, 1) * mean_factor(settings))
    digit = 10.0 ** math.floor(math.log10(rate))
    return float(f"{min(most, round(rate / digit) * digit):.0e}")
