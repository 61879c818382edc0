"""What a reader yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A stretch of a file that is no row: where, the reason's short name, the detail, and as much of it as is sane."""

    origin: str
    reason: str
    detail: str
    raw: Any = None
