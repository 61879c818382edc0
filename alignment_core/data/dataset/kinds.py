"""The kinds of records and rows."""

from __future__ import annotations

KINDS = ("demonstrations", "preferences", "feedback", "prompts")
"""A record's `kind` is its index in this tuple."""

DEMONSTRATION, PREFERENCE, FEEDBACK, PROMPT = range(4)
