"""Advice on a finished run, or on one that is only planned."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Advice:
    """What a rule found in the metrics of a run. Texts may name settings between backticks."""

    rule: str
    """Name of the rule, such as `both-rewards-fall`."""
    finding: str
    """What was measured, with its number, as a sentence without a period."""
    meaning: str
    """What that means for the model, in the same way."""
    do: str
    """Which setting to change, and in which direction, in the same way."""
    source: str
    """The paper or the measurement that the rule is from."""
