"""The kinds of records and rows."""

from __future__ import annotations

KINDS = ("demonstrations", "preferences", "feedback", "prompts")
"""A record's `kind` is its index in this tuple."""

IN_WORDS = {
    "demonstrations": "demonstrations",
    "preferences": "pairs",
    "feedback": "labelled responses",
    "prompts": "prompts",
}
"""What people read for a kind."""

DEMONSTRATION, PREFERENCE, FEEDBACK, PROMPT = range(4)
