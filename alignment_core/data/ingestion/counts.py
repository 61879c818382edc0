"""The counts that selection produces for the report, and how they are written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class SelectionCounts:
    """Numbers of records, and warnings.

    Attributes:
        votes: votes by outcome. `contradicting` counts pairs and responses with contradicting votes, and
            `as often chosen as rejected` counts responses.
        duplicates: removed records: `exact` and `near`.
        conversions: rows by the records they come from, for each split.
        ambiguous_facts: prompts whose records do not agree on the kept columns.
        warnings: messages for the user.
    """

    votes: Counter[str] = field(default_factory=Counter)
    duplicates: Counter[str] = field(default_factory=lambda: Counter(exact=0, near=0))
    conversions: dict[str, Counter[str]] = field(default_factory=dict)
    ambiguous_facts: int = 0
    warnings: list[str] = field(default_factory=list)


def counted(count: int, noun: str) -> str:
    """Return `1 row`, `5 rows` or `1,000 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
