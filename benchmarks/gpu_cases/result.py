"""What a case reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class Skipped(Exception):
    """The case cannot run here, for example because a library does not import. The message says why."""


@dataclass
class Result:
    """The measurements of one case; None: not measured in this kind of case.

    Attributes:
        ok: whether what was expected held. Without an expectation: whether the case came to its end.
        settings: what the case ran with, as plain JSON.
        seconds: time of the measured part.
        tokens: tokens learned in the measured part.
        peak_allocated, peak_reserved: bytes.
        predicted: bytes that the planner predicted for the peak of allocated memory.
        details: everything else, as plain JSON.
        error: why the case did not come to its end. What was known by then is in the other fields.
    """

    ok: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    tokens: int | None = None
    peak_allocated: int | None = None
    peak_reserved: int | None = None
    predicted: int | None = None
    details: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        speed = None if not self.seconds or self.tokens is None else round(self.tokens / self.seconds, 1)
        return {
            "settings": self.settings,
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "tokens": self.tokens,
            "tokens_per_s": speed,
            "peak_allocated": self.peak_allocated,
            "peak_reserved": self.peak_reserved,
            "predicted": self.predicted,
            "details": self.details,
            "ok": self.ok,
            "error": self.error,
        }
