"""The judges of `reward.by`: which evaluators reward responses, and whether the reward model does."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignment_core.config.training import REWARD_MODEL
from alignment_core.errors import ConfigError
from alignment_core.plugin_api import Evaluator
from alignment_core.registry import Registry

WHERE = "reward.by"


@dataclass(frozen=True)
class RewardPart:
    """One judge of the reward.

    Attributes:
        label: its name in metrics. Distinct, also if one evaluator is used twice.
        weight: the factor on its scores.
        evaluator: the evaluator, or None for the reward model.
    """

    label: str
    weight: float
    evaluator: Evaluator | None

    def to_json(self, registry: Registry) -> dict[str, Any]:
        """Return it as an item of `reward.by` with the identity of its plugin, for cache keys."""
        if self.evaluator is None:
            return {"name": REWARD_MODEL, "weight": self.weight}
        settings = self.evaluator.model_dump(mode="json")
        return {**settings, "weight": self.weight, "plugin": registry.identity(self.evaluator)}


def reward_parts(by: Sequence[Mapping[str, Any]], registry: Registry) -> list[RewardPart]:
    """Return the judges that `reward.by` names.

    Raises:
        ConfigError: a weight is no number or 0, the reward model occurs twice, or a setting of an evaluator is wrong.
        PluginError: no evaluator with this name is installed.
    """
    parts: list[RewardPart] = []
    count: Counter[str] = Counter()
    for index, raw in enumerate(by):
        where = f"{WHERE}.{index}"
        settings = {name: value for name, value in raw.items() if name not in ("weight", "plugin")}
        weight = _weight(raw.get("weight", 1.0), where)
        evaluator = None if raw.get("name") == REWARD_MODEL else registry.evaluator(settings, where=where)
        if evaluator is None:
            _check_plain(settings, where, again=REWARD_MODEL in count)
        name = REWARD_MODEL if evaluator is None else evaluator.name
        count[name] += 1
        label = name if count[name] == 1 else f"{name}_{count[name]}"
        parts.append(RewardPart(label, weight, evaluator))
    return parts


def uses_reward_model(by: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the reward model is one of the judges."""
    return any(raw.get("name") == REWARD_MODEL for raw in by)


def _weight(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value == 0:
        raise ConfigError(
            "the weight cannot be used", where=f"{where}.weight", got=value, expected="a finite number other than 0"
        )
    return float(value)


def _check_plain(settings: Mapping[str, Any], where: str, *, again: bool) -> None:
    if again:
        raise ConfigError("the reward model occurs twice", where=where, do="Use it once, with the sum of the weights")
    if others := sorted(settings.keys() - {"name"}):
        raise ConfigError(
            "the reward model has no settings here",
            where=where,
            got=", ".join(others),
            do="Its settings are those of the section `reward`",
        )
