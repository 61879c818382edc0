"""What selection finds and decides, in numbers, for the report."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Facts:
    """Numbers of records; `conversions` by split."""

    votes: Counter[str] = field(default_factory=Counter)
    duplicates: Counter[str] = field(default_factory=lambda: Counter(exact=0, near=0, like_held_out=0))
    conversions: dict[str, Counter[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
