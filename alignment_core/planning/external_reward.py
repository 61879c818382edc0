"""The reward model that the settings name instead of training one. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alignment_core.config import RewardConfig
from alignment_core.data.rendering.builtin_templates import lacks_template, resolve_chat_template
from alignment_core.errors import ConfigError
from alignment_core.models.base.base_checks import check_files, check_no_adapter, check_precision, rows_to_add
from alignment_core.models.base.identity import (
    ModelIdentity,
    check_classifier,
    has_chat_template,
    model_file,
    model_identity,
    read_json,
)
from alignment_core.own_code import refuse_unknown

FIELDS = ("model", "revision", "trust_remote_code", "chat_template")
"""Fields of `RewardConfig` that name an existing model."""
MIXED = ("by", "normalise", "clip")
"""Fields of `RewardConfig` that say how judgments become rewards. The remaining ones train a reward model."""


@dataclass(frozen=True)
class ExternalReward:
    """An existing reward model, which the run does not train.

    Attributes:
        model: identity of the model.
        chat_template: text of its chat template, or None for the template of its tokenizer.
    """

    model: ModelIdentity
    chat_template: str | None

    def key(self) -> dict[str, Any]:
        """Return everything that determines its scores, for cache keys."""
        return {
            "weights": self.model.weights,
            "tokenizer": self.model.tokenizer,
            "chat_template": self.chat_template,
            **self.model.code(),
        }

    def place(self) -> dict[str, Any]:
        """Return its location, for the inputs of a stage call."""
        return self.model.place()


def external_reward(settings: RewardConfig, load_in: str) -> ExternalReward | None:
    """Return the reward model in `reward.model`, or None if it is unset.

    Args:
        settings: the settings of the reward model.
        load_in: the precision in which it is loaded.

    Raises:
        ConfigError: another field of `FIELDS` is set, but `reward.model` is not.
        ModelError: the model does not exist, is not a classifier with one label, cannot be loaded in that precision, or
            has no usable chat template.
    """
    if settings.model is None:
        for name in FIELDS[1:]:
            if getattr(settings, name) not in (None, False):
                raise ConfigError("this setting needs `reward.model`, which is not set", where=f"reward.{name}")
        return None
    found = model_identity(settings.model, settings.revision, "reward.model", trusted=settings.trust_remote_code)
    if not settings.trust_remote_code:
        refuse_unknown(read_json(model_file(found, "config.json")), found.path, "reward.model")
    check_files(found, "reward.model")
    check_no_adapter(found, "reward.model")
    check_precision(found, load_in, "reward.model")
    check_classifier(found, "reward.model")
    template = resolve_chat_template(settings.chat_template, "reward.chat_template")
    if template is None and not has_chat_template(found):
        raise lacks_template(settings.model)
    rows_to_add(found, template, "reward.model", resize=False)
    return ExternalReward(found, template)
