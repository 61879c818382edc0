"""Metrics of sampled responses: length, repetition, KL and scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from alignment_core.evaluation.text_statistics import distinct_share, repeated_share
from alignment_core.plugin_api import Rollout
from alignment_core.training.rewards import scores_of
from alignment_core.training.run import Run


def response_statistics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return the mean length in tokens, the share of truncated responses, and repetition statistics over words."""
    texts = [rollout.text for rollout in rollouts]
    distinct = {f"distinct_{n}": share for n in (1, 2) if (share := distinct_share(texts, n)) is not None}
    return {
        "response_length": sum(len(rollout.sequence.completion) for rollout in rollouts) / len(rollouts),
        "truncated_share": sum(not rollout.finished for rollout in rollouts) / len(rollouts),
        "repeated_share": repeated_share(texts),
        **distinct,
    }


def kl_from_reference(run: Run, rollouts: Sequence[Rollout], temperature: float) -> dict[str, float]:
    """Return KL(policy ‖ reference) per response in nats, estimated on the policy's samples, and its standard error."""
    sequences = [rollout.sequence for rollout in rollouts]
    with torch.no_grad():
        policy = run.policy.token_logps(sequences, temperature)
        reference = run.reference.token_logps(sequences, temperature)
    per_response = (policy.logps - reference.logps).sum(dim=1)
    error = float(per_response.std(correction=1)) / math.sqrt(len(rollouts)) if len(rollouts) > 1 else math.nan
    return {"kl": float(per_response.mean()), "kl_standard_error": error}


def reward_scores(run: Run, rollouts: Sequence[Rollout]) -> list[float]:
    """Return the reward model's score of each response."""
    with torch.no_grad():
        scores: list[float] = scores_of(run.reward, [rollout.sequence for rollout in rollouts]).tolist()
    return scores


def ordering_accuracy(scores: Sequence[float | None], truth: Sequence[float | None]) -> float | None:
    """Return how often the scores order two responses like the true values, over all pairs whose true values differ.

    A tie of the scores counts half. Responses without a score or a true value are left out. The result is None if all
    true values are equal.
    """
    right = pairs = 0.0
    both = [(one, true) for one, true in zip(scores, truth, strict=True) if one is not None and true is not None]
    for i, (score, true) in enumerate(both):
        for other_score, other_true in both[:i]:
            if true != other_true:
                pairs += 1
                agrees = (score - other_score) * (true - other_true)
                right += 1.0 if agrees > 0 else 0.5 if agrees == 0 else 0.0
    return right / pairs if pairs else None
