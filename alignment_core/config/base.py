"""The base class of every group of settings, and the types that several groups share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Temperature = Annotated[float, Field(ge=1e-6, le=1e6)]
"""Divides logits. With a smaller one, the quotients are infinite."""


def _zero_or_temperature(value: float) -> float:
    if 0 < value < 1e-6:
        raise ValueError("expected 0, or at least 1e-6")
    return value


ZeroOrTemperature = Annotated[float, Field(ge=0, le=1e6), AfterValidator(_zero_or_temperature)]
"""A temperature, or 0: the most likely token."""
Tokens = Annotated[int, Field(ge=1, le=100_000_000)]
"""Number of tokens to generate."""
Name = Annotated[str, Field(min_length=1)]
"""The name of something that exists."""
Seconds = Annotated[float, Field(gt=0, le=1e7)]
"""How long to wait."""
Moments = Literal["32bit", "paged_8bit"]
LoadIn = Literal["nf4", "int8", "bf16", "fp32"]
Supervision = Literal["demonstrations", "preferences", "feedback", "prompts"]


class Settings(BaseModel):
    """A frozen group of settings. Unknown names are errors, and the docstrings of fields are their descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
