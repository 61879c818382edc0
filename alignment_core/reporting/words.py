"""Responses beside one another, with the words marked in which they differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import groupby

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\w+|\s+|[^\w\s]")
"""A word, a run of spaces, or a punctuation mark. Chinese and Japanese have no spaces: each character is a word."""
COMPARED = 1500
"""Number of words up to which two responses are compared. Later words are not marked."""
ALIKE = 0.35
"""If a smaller share of the words is common, nothing is marked: almost everything would be."""
SHOWN, FOLDED = 900, 12_000
"""Characters of a response that are shown at once, and that the page holds at all."""
BUDGET = 600_000
"""Characters of all responses of a page, so that a browser still opens it."""


@dataclass(frozen=True)
class Run:
    """A piece of a response. It differs if the other response does not have it at this place."""

    text: str
    differs: bool


@dataclass(frozen=True)
class Answer:
    """A response of one model.

    Attributes:
        model: the model.
        series: its color.
        text: the response.
        notes: scores and verdicts.
        runs: the response in pieces. Set by `marked`.
    """

    model: str
    series: int
    text: str
    notes: Sequence[str] = ()
    runs: Sequence[Run] = ()

    @property
    def shown(self) -> list[Run]:
        """The part that is shown at once."""
        return _part(self.runs, 0, SHOWN if len(self.text) > 1.2 * SHOWN else len(self.text))

    @property
    def folded(self) -> list[Run]:
        """The part that a reader has to unfold."""
        return _part(self.runs, SHOWN, FOLDED) if len(self.text) > 1.2 * SHOWN else []

    @property
    def shown_characters(self) -> int:
        """Number of characters that are shown at once."""
        return sum(len(run.text) for run in self.shown)

    @property
    def left_out(self) -> int:
        """Number of characters that the page does not hold."""
        return max(len(self.text) - FOLDED, 0)


@dataclass(frozen=True)
class Sample:
    """The responses of several models to one prompt.

    Attributes:
        prompt: the turns, each a role and a text.
        answers: the responses, that of the model that the others are compared with first.
        note: what a reader has to know about the marks.
    """

    prompt: Sequence[tuple[str, str]]
    answers: Sequence[Answer]
    note: str = field(default="")


def words(text: str) -> list[str]:
    """Return the words, spaces and punctuation marks of a text. Together they are the text."""
    return WORD.findall(text)


def differing(one: str, other: str) -> tuple[list[Run], list[Run]] | None:
    """Return both texts in pieces, marked where they differ. None: almost everything differs."""
    first, second = words(one), words(other)
    ours, theirs = first[:COMPARED], second[:COMPARED]
    blocks = SequenceMatcher(None, ours, theirs).get_matching_blocks()
    common = sum(sum(not word.isspace() for word in ours[a : a + size]) for a, _, size in blocks)
    shorter = min(sum(not word.isspace() for word in side) for side in (ours, theirs))
    if common < ALIKE * shorter or not shorter:
        return None
    mine, yours = set[int](), set[int]()
    for a, b, size in blocks:
        mine.update(range(a, a + size))
        yours.update(range(b, b + size))
    return _runs(first, mine), _runs(second, yours)


def _runs(text: Sequence[str], common: set[int]) -> list[Run]:
    """Join neighboring words. A space differs only between two words that differ."""
    marks = [
        place < COMPARED and place not in common and not (word.isspace() and place - 1 in common)
        for place, word in enumerate(text)
    ]
    pairs = zip(text, marks, strict=True)
    return [
        Run("".join(word for word, _ in part), differs) for differs, part in groupby(pairs, key=lambda pair: pair[1])
    ]


def _part(runs: Sequence[Run], start: int, end: int) -> list[Run]:
    found, place = [], 0
    for run in runs:
        piece = run.text[max(start - place, 0) : max(end - place, 0)]
        if piece:
            found.append(Run(piece, run.differs))
        place += len(run.text)
    return found


def marked(sample: Sample) -> Sample:
    """Return the sample with the words marked in which each response differs from the first one.

    With two responses both are marked, with more all except the first.
    """
    first, *others = sample.answers
    found = [differing(first.text, other.text) for other in others]
    alone = [Run(first.text, False)]
    both = found[0] if len(found) == 1 and found[0] is not None else None
    answers = [_with(first, alone if both is None else both[0])]
    answers += [
        _with(other, [Run(other.text, False)] if one is None else one[1])
        for other, one in zip(others, found, strict=True)
    ]
    apart = [other.model for other, one in zip(others, found, strict=True) if one is None]
    long = any(len(words(answer.text[:FOLDED])) > COMPARED for answer in sample.answers)
    notes = [f"Almost every word differs, so none is marked: {', '.join(apart)}"] if apart else []
    notes += [f"Differences are marked in the first {COMPARED:,} words"] if long and len(apart) < len(others) else []
    return Sample(sample.prompt, answers, ". ".join(notes))


def _with(answer: Answer, runs: Sequence[Run]) -> Answer:
    return Answer(answer.model, answer.series, answer.text, answer.notes, [run for run in runs if run.text])


def that_fit(samples: Iterable[Sample], limit: int) -> list[Sample]:
    """Return the first samples, at most `limit` and as many as a browser opens well, but at least one; marked."""
    found: list[Sample] = []
    room = BUDGET
    for sample in samples:
        room -= sum(min(len(answer.text), FOLDED) for answer in sample.answers)
        if len(found) == limit or (found and room < 0):
            break
        found.append(marked(sample))
    return found
