"""The result of a reader for a part of a file that is not a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A part of a file that is not a row: its origin, a short reason, the detail, and an excerpt of limited length."""

    origin: str
    reason: str
    detail: str
    raw: Any = None
