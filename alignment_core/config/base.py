"""The base class of every group of settings, and the types that several groups share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Moments = Literal["32bit", "paged_8bit"]
LoadIn = Literal["nf4", "int8", "bf16", "fp32"]
Supervision = Literal["demonstrations", "preferences", "feedback", "prompts"]


class Settings(BaseModel):
    """A frozen group of settings. Unknown names are errors, and the docstrings of fields are their descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
