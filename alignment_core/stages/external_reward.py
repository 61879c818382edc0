"""The reward model that the settings name, in place of one that is trained. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alignment_core.config import RewardConfig
from alignment_core.data.chat_templates import lacks_template, resolve_chat_template
from alignment_core.errors import ConfigError
from alignment_core.models.identity import ModelIdentity, check_classifier, has_chat_template, model_identity

FIELDS = ("model", "revision", "chat_template")
"""Fields of `RewardConfig` that say which model there is instead of how one is trained."""


@dataclass(frozen=True)
class ExternalReward:
    """A reward model that is not trained here.

    Attributes:
        model: which one.
        chat_template: text of its template; None: its tokenizer's own.
    """

    model: ModelIdentity
    chat_template: str | None

    def key(self) -> dict[str, Any]:
        """What decides its scores."""
        return {
            "weights": self.model.weights,
            "tokenizer": self.model.tokenizer,
            "chat_template": self.chat_template,
        }

    def place(self) -> dict[str, Any]:
        """Where it lies."""
        return {"path": self.model.path, "revision": self.model.revision}


def external_reward(settings: RewardConfig) -> ExternalReward | None:
    """The reward model of `reward.model`; None where it is not set.

    Raises:
        ConfigError: something is said about it, but it is not named.
        ModelError: there is no such model, it is no classifier with one label, or it has no template that can be read.
    """
    if settings.model is None:
        for name in FIELDS[1:]:
            if getattr(settings, name) is not None:
                raise ConfigError("it belongs to `reward.model`, which is not set", where=f"reward.{name}")
        return None
    found = model_identity(settings.model, settings.revision, "reward.model")
    check_classifier(found, "reward.model")
    template = resolve_chat_template(settings.chat_template, "reward.chat_template")
    if template is None and not has_chat_template(found):
        raise lacks_template(settings.model)
    return ExternalReward(found, template)
