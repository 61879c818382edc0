"""Who judged a row, and when."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

RATERS = ("rater", "annotator", "annotator_id", "labeler", "labeller", "worker_id")
"""Columns that name who judged. Our own export writes the first."""


def rater_and_time(row: Mapping[str, Any]) -> tuple[str | None, float]:
    """Return who judged, and when, from the columns of these names and from `time`, in seconds or as an ISO date."""
    found = (_name(row[column]) for column in RATERS if column in row)
    return next(filter(None, found), None), seconds(row.get("time"))


def seconds(value: Any) -> float:
    """Return a time in seconds from a number or a date in ISO format, or from the text of one; 0 if it is neither.

    A date without a time zone is in UTC, so that it means the same on every machine.
    """
    with suppress(TypeError, ValueError, OverflowError):
        number = float(value)
        return number if math.isfinite(number) else 0.0
    with suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(str(value))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return 0.0


def _name(value: Any) -> str:
    """Return a rater's name or number as text; empty if it is neither. In a table with gaps, ids are read as 7.0."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, str | int) else ""
