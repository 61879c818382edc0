"""Calibration of a reward model: does its confidence match its accuracy?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Preference pairs with similar confidence.

    Attributes:
        low, high: the bin covers confidences from `low` to below `high`. The last bin includes 1.
        pairs: number of pairs.
        confidence: mean confidence of the pairs; None for an empty bin.
        accuracy: share of correctly ordered pairs, where a tie counts half; None for an empty bin.
    """

    low: float
    high: float
    pairs: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """Calibration of a reward model on held-out pairs.

    Attributes:
        accuracy: share of pairs whose chosen completion scores higher; a tie counts half.
        brier: mean of (1 - p)², where p is the probability that the model gives the chosen completion. A coin has 0.25.
        ece: expected calibration error: the mean over all pairs of |accuracy - confidence| of their bin.
        bins: ten bins of equal width from confidence 0.5 to 1.
    """

    accuracy: float
    brier: float
    ece: float
    bins: tuple[Bin, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def calibration(differences: Sequence[float]) -> Calibration:
    """Return the calibration of Bradley–Terry probabilities on preference pairs.

    The model gives the chosen completion the probability p = σ(r_chosen - r_rejected). Its confidence is max(p, 1 - p),
    the probability of the completion that it prefers. It is right if it prefers the chosen one.

    Args:
        differences: r_chosen - r_rejected of each pair. There is at least one.
    """
    filled: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    brier = 0.0
    for difference in differences:
        p = 1 / (1 + math.exp(-difference)) if difference > -700 else 0.0
        right = 1.0 if difference > 0 else 0.5 if difference == 0 else 0.0
        confidence = max(p, 1 - p)
        filled[min(int((confidence - 0.5) * 2 * BINS), BINS - 1)].append((confidence, right))
        brier += (1 - p) ** 2
    bins = tuple(_bin(place, pairs) for place, pairs in enumerate(filled))
    count = len(differences)
    return Calibration(
        accuracy=sum(right for pairs in filled for _, right in pairs) / count,
        brier=brier / count,
        ece=sum(
            bin_.pairs * abs(bin_.accuracy - bin_.confidence)
            for bin_ in bins
            if bin_.accuracy is not None and bin_.confidence is not None
        )
        / count,
        bins=bins,
    )


def _bin(place: int, pairs: Sequence[tuple[float, float]]) -> Bin:
    low, high = 0.5 + place / (2 * BINS), 0.5 + (place + 1) / (2 * BINS)
    if not pairs:
        return Bin(low, high, 0, None, None)
    confidence, accuracy = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    return Bin(low, high, len(pairs), confidence, accuracy)
