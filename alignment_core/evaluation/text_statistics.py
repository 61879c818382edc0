"""What repetition does to responses, counted in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

REPEATED = 4
"""Words in the runs whose repetition is counted."""


def distinct_share(texts: Sequence[str], n: int) -> float | None:
    """Distinct-n (arXiv 1510.03055): different runs of `n` words among all of them; None where there is none."""
    runs = [run for text in texts for run in _runs(text, n)]
    return len(set(runs)) / len(runs) if runs else None


def repeated_share(texts: Sequence[str]) -> float:
    """Mean over the responses of the share of 4-word runs that occurred earlier in the same response.

    A response of fewer than four words repeats nothing.
    """
    shares = []
    for text in texts:
        runs = list(_runs(text, REPEATED))
        shares.append(1 - len(set(runs)) / len(runs) if runs else 0.0)
    return sum(shares) / len(shares)


def _runs(text: str, n: int) -> Iterator[tuple[str, ...]]:
    words = text.split()
    return (tuple(words[start : start + n]) for start in range(len(words) - n + 1))
