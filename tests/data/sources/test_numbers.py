"""Numbers and times are read in every exporter's notation, and mean the same on every machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from alignment_core.data.sources.parsing import shapes
from alignment_core.records.format import BadRow
from alignment_core.records.raters import seconds


@pytest.fixture
def far_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this machine be 11 hours ahead of UTC."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "<+11>-11")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("far_away")
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, 5.0), ("5", 5.0), ("1.5", 1.5), (datetime(1970, 1, 2, tzinfo=UTC), 86400.0), ("1970-01-02", 86400.0),
        ("1970-01-01T00:01:00Z", 60.0), ("1970-01-01 01:00:00+01:00", 0.0), ("1970-01-01 00:00:07", 7.0),
        (None, 0.0), ("", 0.0), ("yesterday", 0.0), (float("nan"), 0.0), (10**400, 0.0), ([], 0.0), ({}, 0.0),
    ],
)  # fmt: skip
def test_times(value: Any, expected: float) -> None:
    assert seconds(value) == expected


@pytest.mark.parametrize("value", ["many", [4], float("inf"), 10**400])
def test_what_is_no_number_is_named(value: Any) -> None:
    with pytest.raises(BadRow, match=r"stars is .*, expected a (finite )?number"):
        shapes.number(value, "stars")
