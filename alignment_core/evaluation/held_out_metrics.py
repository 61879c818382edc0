"""Metrics of a model on the held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from scipy.stats import rankdata
from torch import Tensor

from alignment_core.plugin_api import Row, TokenSequence
from alignment_core.training.run import Run


def loss(run: Run, demonstrations: Sequence[Row]) -> float:
    """Return the mean negative log-likelihood of the policy over all target tokens, in nats."""
    sequences = [row.sequences["demonstration"] for row in demonstrations]
    with torch.no_grad():
        nats = -float(run.policy.logps(sequences).sum())
    return nats / sum(sequence.targets for sequence in sequences)


def pair_differences(preferences: Sequence[Row], score: Callable[[list[TokenSequence]], Tensor]) -> list[float]:
    """Return the score of the chosen completion minus that of the rejected one, for each pair."""
    with torch.no_grad():
        chosen = score([row.sequences["chosen"] for row in preferences])
        rejected = score([row.sequences["rejected"] for row in preferences])
    differences: list[float] = (chosen - rejected).tolist()
    return differences


def pair_accuracy(preferences: Sequence[Row], score: Callable[[list[TokenSequence]], Tensor]) -> float:
    """Return the share of pairs whose chosen completion has the higher score. A tie counts half."""
    differences = pair_differences(preferences, score)
    return sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in differences) / len(differences)


def thumb_auc(feedback: Sequence[Row], score: Callable[[list[TokenSequence]], Tensor]) -> float | None:
    """Return the probability that a liked response has a higher score than a disliked one. A tie counts half.

    The two responses may answer different prompts. The result is the area under the ROC curve: the Mann–Whitney U
    divided by the number of such pairs. It is None if there are no liked or no disliked responses.
    """
    with torch.no_grad():
        scores = score([row.sequences["response"] for row in feedback]).tolist()
    liked = [bool(row.number("desirable")) for row in feedback]
    good, bad = sum(liked), len(liked) - sum(liked)
    if not good or not bad:
        return None
    ranks = rankdata(scores)
    return float(sum(rank for rank, up in zip(ranks, liked, strict=True) if up) - good * (good + 1) / 2) / (good * bad)
