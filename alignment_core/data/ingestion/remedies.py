"""What a user can set so that rows become usable which are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alignment_core.data.sources.parsing.judgments import rating_in

TOO_LONG = frozenset({"completion_too_long", "prompt_too_long"})
"""Quarantine reasons that depend on the settings, not on the row alone."""
SEVERAL = 200
"""Different ratings that are kept. More say no more about the scale."""


class Ratings:
    """The ratings that a source of feedback cannot use without a threshold."""

    def __init__(self) -> None:
        self._found: set[float] = set()

    def add(self, detail: str) -> None:
        """Note the rating in the detail of a quarantined row."""
        rating = rating_in(detail)
        if rating is not None and len(self._found) < SEVERAL:
            self._found.add(rating)

    def threshold(self) -> float | None:
        """Return a threshold above the middle: of 1 to 5 stars, four. None if there are no two different ratings."""
        if len(self._found) < 2:
            return None
        middle = (min(self._found) + max(self._found)) / 2
        return min(rating for rating in self._found if rating > middle)


def remedies(quarantined: Mapping[str, int], thresholds: Sequence[float | None]) -> list[str]:
    """Return what to set, in the words of the command line and of a config file.

    Args:
        quarantined: number of rows by reason.
        thresholds: a threshold for the ratings of each source, None if it has none or they are all the same.
    """
    found = []
    if quarantined.get("no_threshold"):
        value = next((f"{threshold:g}" for threshold in thresholds if threshold is not None), "NUMBER")
        found.append(
            f"Say from where on a rating is a thumbs up: `--threshold {value}`, or in a config file "
            f"`threshold: {value}` of the source"
        )
    if quarantined.get("bad_label"):
        found.append(
            "Say which labels are a thumbs up: `--desirable WORD`, or in a config file `desirable: [WORD]` of the "
            "source"
        )
    if any(quarantined.get(reason) for reason in TOO_LONG):
        found.append("Raise `model.max_length`")
    return found
