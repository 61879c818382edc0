"""Repetition statistics of responses, over n-grams of words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

REPEATED = 4
"""Words per n-gram in `repeated_share`."""


def distinct_share(texts: Sequence[str], n: int) -> float | None:
    """Return distinct-n (arXiv 1510.03055): the share of different word n-grams among all, or None without any."""
    ngrams = [ngram for text in texts for ngram in _ngrams(text, n)]
    return len(set(ngrams)) / len(ngrams) if ngrams else None


def repeated_share(texts: Sequence[str]) -> float:
    """Return the mean share of word 4-grams that occurred earlier in the same response.

    The share of a response with fewer than four words is 0.
    """
    shares = []
    for text in texts:
        ngrams = list(_ngrams(text, REPEATED))
        shares.append(1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0)
    return sum(shares) / len(shares)


def _ngrams(text: str, n: int) -> Iterator[tuple[str, ...]]:
    words = text.split()
    return (tuple(words[start : start + n]) for start in range(len(words) - n + 1))
