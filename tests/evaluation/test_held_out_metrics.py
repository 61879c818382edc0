"""Metrics of a model's scores on held-out judgments, computed by hand."""

from __future__ import annotations

import pytest
import torch

from alignment_core.evaluation.held_out_metrics import thumb_auc
from alignment_core.plugin_api import Row, TokenSequence


def auc(scores: list[float], liked: list[int]) -> float | None:
    rows = [Row(str(i), {"response": TokenSequence((1, i), 1)}, {"desirable": float(up)}) for i, up in enumerate(liked)]
    return thumb_auc(rows, lambda sequences: torch.tensor([scores[sequence.ids[1]] for sequence in sequences]))


@pytest.mark.parametrize(
    ("scores", "liked", "expected"),
    [
        ([3.0, 1.0], [1, 0], 1.0),
        ([1.0, 3.0], [1, 0], 0.0),
        ([2.0, 2.0], [1, 0], 0.5),
        # Pairs of a liked and a disliked response: 4 over 1, 4 over 2, 2 over 1, and 2 tied with 2, so 3.5 of 4.
        ([4.0, 1.0, 2.0, 2.0], [1, 0, 1, 0], 3.5 / 4),
        ([1.0, 2.0], [1, 1], None),
        ([1.0, 2.0], [0, 0], None),
        ([], [], None),
    ],
)
def test_auc_is_the_share_of_correctly_ordered_pairs(
    scores: list[float], liked: list[int], expected: float | None
) -> None:
    assert auc(scores, liked) == expected
