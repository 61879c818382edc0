"""The chat page and the recurring retraining."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from alignment_core.config.base import Settings, Tokens, ZeroOrTemperature


class ChatConfig(Settings):
    """Sampling of the answers on the `align chat` page."""

    max_new_tokens: Tokens = 512
    """Maximum length of an answer in tokens."""
    temperature: ZeroOrTemperature = 1.0
    """Sampling temperature. 0 always picks the most likely token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: sample from the smallest set of tokens whose total probability reaches this. 1 keeps all
    tokens."""
    system: str | None = None
    """System prompt of every conversation. Null: none."""


class RetrainConfig(Settings):
    """Recurring retraining on the votes in the feedback store with `align retrain`."""

    min_votes: int = Field(50, ge=1)
    """Minimum number of new votes. With fewer, no retraining takes place."""
    replay: float = Field(0.5, ge=0, lt=1)
    """Share of older data among the preference pairs and labelled responses that the optimizer learns from."""
    start: Literal["promoted", "sft"] = "promoted"
    """Model that the policy starts from and that serves as its reference. `promoted`: the production model, which only
    learns from the votes that it has not seen, plus replay. `sft`: the SFT model, which learns from all votes."""
