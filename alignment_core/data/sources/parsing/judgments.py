"""Convert judged completions of one prompt to records: ordered pairs, and labels by a threshold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from alignment_core.config import SourceConfig
from alignment_core.data.sources.parsing import shapes
from alignment_core.records import Conversation, LabelledResponse, Message, PreferencePair
from alignment_core.records.columns import DOWN, UP, is_missing, peek
from alignment_core.records.format import BadRow, Dropped, Fields, Outcome, Reading

LABEL_NAMES = (
    "thumbs", "thumb", "thumbs_up", "feedback", "user_feedback", "vote", "verdict", "reaction", "like", "liked",
    "is_liked", "helpful", "is_helpful", "is_good", "correct", "is_correct", "desirable", "is_desirable", "accepted",
    "approved",
)  # fmt: skip
"""Columns that are read as labels, besides `label` and `kto_tag`, where their content is clearly up or down."""
UNRATED = "which needs a threshold (data.sources[].threshold)"
"""What is said about a rating that cannot be used."""
RATING_NAMES = ("rating", "score", "reward", "stars", "user_rating", "overall_score")


def label_column(row: Fields) -> str | None:
    """Return the column that labels the answer as good or bad, or None if there is no clear one."""
    for name in ("label", "kto_tag"):
        if name in row:
            return name
    return next((name for name in LABEL_NAMES if name in row and _is_clear(peek(row, name))), None)


def label_of(row: Fields, column: str, source: SourceConfig) -> bool | None:
    """Return True for thumbs up, False for thumbs down and None for no vote, from a column of `label_column`.

    Raises:
        BadRow: the value is not a known label, or it is a 0 in a column that the user did not name as the label.
    """
    value = row[column]
    if column in LABEL_NAMES and not source.desirable and str(value).strip() in ("0", "0.0"):
        advice = f"Set data.sources[].columns with label: {column} to read it as thumbs down"
        raise BadRow("bad_label", f"`{column}` is 0, which may mean thumbs down or no vote. {advice}")
    return shapes.label(value, column, source.desirable)


def _is_clear(value: object) -> bool:
    """Whether a value is a label in most notations, or empty."""
    if isinstance(value, bool) or is_missing(value):
        return True
    if isinstance(value, int | float):
        return value in (0, 1, -1)
    return str(value).strip().lower() in UP | DOWN


def preference_pair(
    prompt: Conversation, chosen: Conversation, rejected: Conversation, margin: float | None, origin: str
) -> PreferencePair:
    """Return a preference pair.

    Raises:
        BadRow: both sides are the same, except for surrounding whitespace.
    """
    if _stripped(chosen) == _stripped(rejected):
        raise BadRow("identical_completions", "chosen and rejected are the same")
    return PreferencePair(prompt, chosen, rejected, margin, origin)


def _stripped(completion: Conversation) -> list[Message]:
    """Return the completion without whitespace around its turns, because chat templates strip it."""
    return [{**message, "content": (message.get("content") or "").strip()} for message in completion]


def ordered_pairs(
    prompt: Conversation,
    judged: Sequence[tuple[Conversation, float]],
    origin: str,
    source: SourceConfig,
    *,
    margins: bool = False,
    voter: str | None = None,
    when: float = 0.0,
) -> Iterator[Outcome]:
    """Yield pairs of completions with different scores, the largest differences first, at most `source.max_pairs`.

    Args:
        prompt: turns before the completions.
        judged: completions with their scores. Higher is better.
        origin: origin of the row.
        source: settings of the source.
        margins: whether to use the difference of scores as the margin. Differences of ranks mean nothing.
        voter: the rater.
        when: time of the judgment.
    """
    pairs = []
    for first, second in combinations(judged, 2):
        if first[1] == second[1]:
            yield Dropped("tie", origin)
        elif _stripped(first[0]) == _stripped(second[0]):
            yield Dropped("identical_completions", origin)
        else:
            better, worse = (first, second) if first[1] > second[1] else (second, first)
            pairs.append((better[1] - worse[1], better[0], worse[0]))
    pairs.sort(key=lambda item: -item[0])
    limit = len(pairs) if source.max_pairs is None else source.max_pairs
    for gap, chosen, rejected in pairs[:limit]:
        record = PreferencePair(prompt, chosen, rejected, gap if margins else None, origin)
        yield Reading(record, voter, when)
    for _ in pairs[limit:]:
        yield Dropped("more_than_max_pairs", origin)


def labelled_response(
    prompt: Conversation, response: Conversation, score: float, origin: str, source: SourceConfig,
    voter: str | None = None, when: float = 0.0, *, column: str = "a rating",
) -> Reading:  # fmt: skip
    """Return a response labelled by comparing its score with the threshold of the source.

    Raises:
        BadRow: no threshold is set.
    """
    if source.threshold is None:
        raise BadRow("no_threshold", f"{column} is {score:g}, {UNRATED}")
    return Reading(LabelledResponse(prompt, response, score >= source.threshold, 1.0, origin), voter, when)


def rating_in(detail: str) -> float | None:
    """Return the rating that `labelled_response` could not use, from what it said about it."""
    before, found, _ = detail.rpartition(f", {UNRATED}")
    return float(before.split()[-1]) if found else None
