"""From several judged completions of one prompt to records: ordered pairs, and thumbs by a threshold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from alignment_core.config import SourceConfig
from alignment_core.record_format import BadRow, Dropped, Fields, Outcome, Reading
from alignment_core.records import Conversation, LabelledResponse, Message, PreferencePair


def pair(
    prompt: Conversation, chosen: Conversation, rejected: Conversation, margin: float | None, origin: str
) -> PreferencePair:
    """A preference pair whose sides differ.

    Raises:
        BadRow: they do not.
    """
    if _words(chosen) == _words(rejected):
        raise BadRow("identical_completions", "chosen and rejected are the same")
    return PreferencePair(prompt, chosen, rejected, margin, origin)


def _words(completion: Conversation) -> list[Message]:
    """The completion without blanks around its turns, which templates take away."""
    return [{**message, "content": (message.get("content") or "").strip()} for message in completion]


def rater(row: Fields) -> tuple[str | None, float]:
    """Who judged and when, from the columns `rater` and `time` (seconds) that our own export writes."""
    name, when = row.get("rater"), row.get("time")
    return (name if isinstance(name, str) and name else None), float(when) if isinstance(when, int | float) else 0.0


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
    """Every pair of completions with different scores, the widest gaps first, at most `source.max_pairs`.

    Args:
        prompt: the turns before.
        judged: completion and score, higher is better.
        origin: the row's place.
        source: the settings.
        margins: whether a difference of scores means something (ranks do not).
        voter: who judged.
        when: when.
    """
    pairs = []
    for first, second in combinations(judged, 2):
        if first[1] == second[1]:
            yield Dropped("tie", origin)
        elif _words(first[0]) == _words(second[0]):
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


def thumb(
    prompt: Conversation, response: Conversation, score: float, origin: str, source: SourceConfig,
    voter: str | None = None, when: float = 0.0,
) -> Reading:  # fmt: skip
    """A response that a scalar judges, by the source's threshold.

    Raises:
        BadRow: there is no threshold.
    """
    if source.threshold is None:
        raise BadRow("no_threshold", f"a scalar rating ({score:g}) needs data.sources[].threshold")
    return Reading(LabelledResponse(prompt, response, score >= source.threshold, 1.0, origin), voter, when)
