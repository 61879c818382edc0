"""What an optimizer maximizes: a weighted sum of judgments, normalized and clipped in this one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from alignment_core.config.training import REWARD_MODEL
from alignment_core.errors import PluginError
from alignment_core.plugin_api import Rollout

Judge = Callable[[Sequence[Rollout]], Sequence[float | None]]
"""Scores responses, in order. The scores are finite. None: it gave no score."""


def scores_of(model: Any, sequences: Sequence[Any]) -> Tensor:
    """Return the reward model's score of each sequence, shape (sequences,), float32. Equal sequences score the same.

    Scored apart, they would differ by a rounding error, because the other sequences of a pass differ, and where scores
    are compared that decides.
    """
    places: dict[Any, int] = {}
    place_of = [places.setdefault(sequence, len(places)) for sequence in sequences]
    scores: Tensor = model.scores(list(places))
    return scores[torch.tensor(place_of, device=scores.device)]


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
        warn: shows a warning.
        warned: what has been warned of.
    """

    parts: Sequence[Part] = (Part(),)
    normalise: bool = True
    clip: float | None = None
    units: dict[str, float] = field(default_factory=dict)
    unreported: dict[str, tuple[float, int]] = field(default_factory=dict)
    warn: Callable[[str], None] = field(default=lambda message: None)
    warned: set[str] = field(default_factory=set)

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
                scores = scores_of(model, [rollout.sequence for rollout in rollouts])
                modelled = float((part.weight * scores).mean())
            else:
                found = self._complete(part, part.judge(rollouts), prefix)
                scores = torch.tensor(found, dtype=torch.float32, device=device)
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
        if self.normalise and deviation == 0:
            self._warn_once(
                f"all {len(total)} responses of the first rollout have the same reward ({float(total[0]):g}), so "
                "rewards are not normalized. Nothing can be learned from equal rewards"
            )
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

    def _complete(self, part: Part, found: Sequence[float | None], prefix: str) -> list[float]:
        missing = [score is None for score in found]
        if any(missing):
            self._note(f"{prefix}unscored_share_{part.name}", torch.tensor(missing).float())
            self._warn_once(
                f"`{part.name}` gave no score to some responses. They get the mean of the others, and "
                f"`unscored_share_{part.name}` says how many there are"
            )
        return filled(found, part.name)

    def _warn_once(self, message: str) -> None:
        if message not in self.warned:
            self.warned.add(message)
            self.warn(message)

    def _note(self, name: str, scores: Tensor) -> None:
        total, count = self.unreported.get(name, (0.0, 0))
        self.unreported[name] = (total + float(scores.sum()), count + len(scores))

    def take_metrics(self) -> dict[str, float]:
        """Return the mean of each metric over the responses scored since the last call."""
        taken = {name: total / count for name, (total, count) in self.unreported.items() if count}
        self.unreported.clear()
        return taken


def filled(scores: Sequence[float | None], name: str) -> list[float]:
    """Return scores in which the mean of the others stands for each one that is missing.

    Raises:
        PluginError: more than half of them are missing.
    """
    given = [score for score in scores if score is not None]
    if 2 * len(given) < len(scores):
        raise PluginError(
            "an evaluator gave no score to most responses",
            where=name,
            got=f"{len(given)} scores of {len(scores)} responses",
            do="Check that the service behind the evaluator works",
        )
    return [fmean(given) if score is None else score for score in scores]


class ValueInUnits:
    """A value model that started from the reward model: its values are in the units of the rewards."""

    def __init__(self, model: Any, rewards: Rewards) -> None:
        self.model, self.rewards = model, rewards

    def values(self, sequences: Sequence[Any]) -> Tensor:
        """Return the value before each completion token, shape (sequences, longest completion), float32."""
        return self.rewards.values(self.model.values(sequences))
