"""Verifiable rules for answers, and the comparisons that a careless rater makes by them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

FEWEST, MOST = 3, 12
"""Words of the first sentence of an answer that follows the rule."""


class Comparison(NamedTuple):
    """Two answers to a prompt, of which the rater prefers the first."""

    prompt: str
    chosen: str
    rejected: str


class Thumb(NamedTuple):
    """An answer with a thumb up or down."""

    prompt: str
    response: str
    up: bool


def first_sentence(text: str) -> str:
    """Return the text up to the first end of a sentence or line. The dot after a number, as in `1. Mix`, is none."""
    return re.split(r"(?<=[^\W\d])[.!?](?=\s|$)|\n", text.strip(), maxsplit=1)[0]


def opens_short(text: str) -> bool:
    """Return whether the first sentence has a number of words within the band."""
    return FEWEST <= len(first_sentence(text).split()) <= MOST


def has_no_comma(text: str) -> bool:
    """Return whether there is no comma: `punctuation:no_comma` of IFEval (arXiv 2311.07911)."""
    return "," not in text


def ends(text: str) -> bool:
    """Return whether the text ends as a sentence does, and not where the limit of tokens cut it off."""
    return text.rstrip().endswith((".", "!", "?"))


RULES: dict[str, tuple[str, Callable[[str], bool]]] = {
    "opening": ("Opening with a short sentence", opens_short),
    "commas": ("No commas", has_no_comma),
    "ends": ("Complete within the limit", ends),
}
"""What each task's rule is called, and whether an answer follows it."""


def comparisons(
    answers: Mapping[str, Sequence[str]],
    follows: Callable[[str], bool],
    count: int | None,
    *,
    noise: float,
    random: random.Random,
) -> list[Comparison]:
    """Return at most one comparison per prompt, of an answer that follows the rule with one that does not.

    Args:
        answers: answers to each prompt. Prompts without both kinds are left out.
        follows: the rule.
        count: number of comparisons, or None for all.
        noise: probability that the rater prefers the answer that breaks the rule.
        random: draws the prompts, the answers and the mistakes.

    Raises:
        ValueError: fewer than `count` prompts have both kinds.
    """
    mixed = [prompt for prompt, texts in answers.items() if 0 < sum(map(follows, texts)) < len(texts)]
    if count is not None and len(mixed) < count:
        raise ValueError(f"only {len(mixed)} of {len(answers)} prompts have answers of both kinds, {count} are needed")
    found = []
    for prompt in random.sample(mixed, len(mixed) if count is None else count):
        good = random.choice([text for text in answers[prompt] if follows(text)])
        bad = random.choice([text for text in answers[prompt] if not follows(text)])
        found.append(Comparison(prompt, bad, good) if random.random() < noise else Comparison(prompt, good, bad))
    return found


def thumbs(pairs: Sequence[Comparison], random: random.Random) -> list[Thumb]:
    """Return both answers of each comparison as a thumb up and a thumb down, shuffled."""
    found = [Thumb(pair.prompt, pair.chosen, True) for pair in pairs]
    found += [Thumb(pair.prompt, pair.rejected, False) for pair in pairs]
    random.shuffle(found)
    return found


def strangers(prompts: Sequence[str]) -> list[int]:
    """Return for each row the nearest row before it, in a circle, that answers another prompt: KTO's mismatched one.

    Raises:
        ValueError: all rows have the same prompt.
    """
    if len(set(prompts)) < 2:
        raise ValueError("a mismatched response needs a second prompt")
    count = len(prompts)
    return [
        next(i for i in ((row - back) % count for back in range(1, count)) if prompts[i] != prompts[row])
        for row in range(count)
    ]
