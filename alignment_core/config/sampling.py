"""Sampling of responses for ranking, and the ranking."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from alignment_core.config.base import Seconds, Settings, Temperature, Tokens
from alignment_core.config.places import WebAddress

LONGEST_RESPONSE = 256


class SampleConfig(Settings):
    """Sampling of several responses to each prompt. They are ranked by `rank` within the run, or by raters."""

    responses_per_prompt: int = Field(4, ge=2, le=10_000)
    """Number of responses per prompt."""
    max_prompts: int | None = Field(None, ge=1)
    """Maximum number of prompts. Unset: all."""
    max_new_tokens: Tokens | None = None
    """Maximum length of a response in tokens. Unset: 256, or half of `model.max_length` if that is less: of responses
    that do not fit into it together with the prompt, nothing can be learned."""
    temperature: Temperature = 1.0
    """Sampling temperature."""

    def longest(self, max_length: int) -> int:
        """Return the maximum length of a response in tokens, where a conversation has at most `max_length`."""
        return min(LONGEST_RESPONSE, max_length // 2) if self.max_new_tokens is None else self.max_new_tokens

    def to_stage(self, max_length: int) -> dict[str, Any]:
        """Return the settings as a stage gets them."""
        return self.model_dump(mode="json") | {"max_new_tokens": self.longest(max_length)}


class VllmConfig(Settings):
    """A vLLM server that samples the responses of the stages `sample` and `optimize`. Evaluation does not use it."""

    url: WebAddress = "http://localhost:8000/v1"
    """Base URL of the server, including the version. It must be able to read the temporary folder of this machine, from
    which it loads the adapter."""
    timeout_seconds: Seconds = 600
    """Timeout of one response in seconds."""
    parallel: int = Field(256, ge=1, le=10_000)
    """Number of responses that are requested at a time."""


class RankConfig(Settings):
    """Ranking of sampled responses by an evaluator instead of human raters. The ranks become preference pairs."""

    by: dict[str, Any]
    """An installed evaluator, as `name` plus its settings."""
    label_noise: float = Field(0.0, ge=0, lt=0.5)
    """Probability that a comparison is flipped, to simulate the errors of human raters."""
