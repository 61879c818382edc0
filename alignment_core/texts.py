"""Compare texts."""

from __future__ import annotations


def common_start(first: str, second: str) -> int:
    """Return the length of the start that two texts share."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))
