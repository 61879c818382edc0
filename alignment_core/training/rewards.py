"""What an optimizer maximizes: a weighted sum of judgements, normalized and clipped in this one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alignment_core.config.training import REWARD_MODEL
from alignment_core.plugin_api import Rollout

Judge = Callable[[Sequence[Rollout]], Sequence[float]]
"""Scores responses, in order. The scores are finite."""


@dataclass(frozen=True)
class Part:
    """One judge of the mixture.

    Attributes:
        name: its name in metrics.
        judge: the judge itself, or None for the reward model of the run.
        weight: the factor on its scores.
    """

    name: str = REWARD_MODEL
    judge: Judge | None = None
    weight: float = 1.0


@dataclass
class Rewards:
    """The rewards of a run.

    The reward of a response is the weighted sum of its scores. With `normalise` it is measured as a deviation from the
    mean in units of the standard deviation, both over the first responses that are scored, which the starting model
    sampled. The units then stay as they are, so that a better policy gets higher rewards.

    Attributes:
        parts: the judges, each with its weight.
        normalise: whether rewards are normalized.
        clip: rewards are clipped to ± this, after normalization. None: not clipped.
        units: the numbers of the normalization, once there are any. They are saved with every checkpoint.
        unreported: sums of metrics since the last report, with the number of responses in each.
    """

    parts: Sequence[Part] = (Part(),)
    normalise: bool = True
    clip: float | None = None
    units: dict[str, float] = field(default_factory=dict)
    unreported: dict[str, tuple[float, int]] = field(default_factory=dict)

    def __call__(self, model: Any, rollouts: Sequence[Rollout], device: torch.device, *, prefix: str = "") -> Tensor:
        """Return the reward of each response, shape (responses,), float32, on `device`.

        Args:
            model: the reward model of the run. Not used unless it is one of the parts.
            rollouts: the responses.
            device: device of the result.
            prefix: of the names of the metrics of these responses.
        """
        total = torch.zeros(len(rollouts), device=device)
        modelled = 0.0
        for part in self.parts:
            if part.judge is None:
                scores = model.scores([rollout.sequence for rollout in rollouts])
                modelled = float((part.weight * scores).mean())
            else:
                scores = torch.tensor(part.judge(rollouts), dtype=torch.float32, device=device)
            if len(self.parts) > 1:
                self._note(f"{prefix}raw_score_{part.name}", scores)
            total = total + part.weight * scores
        self._note(f"{prefix}raw_score", total)
        if not self.units:
            self.units = self._first_units(total, modelled)
        rewards = (total - self.units["mean"]) / self.units["deviation"]
        if self.clip is None:
            return rewards
        self._note(f"{prefix}reward_clipped_share", (rewards.abs() > self.clip).float())
        return rewards.clamp(-self.clip, self.clip)

    def _first_units(self, total: Tensor, modelled: float) -> dict[str, float]:
        deviation = float(total.std(correction=0)) if self.normalise else 0.0
        if deviation == 0:
            return {"mean": 0.0, "deviation": 1.0, "value_mean": 0.0}
        return {"mean": float(total.mean()), "deviation": deviation, "value_mean": modelled}

    def values(self, values: Tensor) -> Tensor:
        """Return the outputs of a value model that started from the reward model, in the units of the rewards.

        The other judges are assumed at their mean, which the value model then learns to correct.
        """
        weight = sum(part.weight for part in self.parts if part.judge is None)
        if not self.units:
            return weight * values
        return (weight * values - self.units["value_mean"]) / self.units["deviation"]

    def _note(self, name: str, scores: Tensor) -> None:
        total, count = self.unreported.get(name, (0.0, 0))
        self.unreported[name] = (total + float(scores.sum()), count + len(scores))

    def take_metrics(self) -> dict[str, float]:
        """Return the mean of each metric over the responses scored since the last call."""
        taken = {name: total / count for name, (total, count) in self.unreported.items() if count}
        self.unreported.clear()
        return taken


class ValueInUnits:
    """A value model that started from the reward model: its values are in the units of the rewards."""

    def __init__(self, model: Any, rewards: Rewards) -> None:
        self.model, self.rewards = model, rewards

    def values(self, sequences: Sequence[Any]) -> Tensor:
        """Return the value before each completion token, shape (sequences, longest completion), float32."""
        return self.rewards.values(self.model.values(sequences))
