"""Losses on human judgments of complete completions. Values are in nats and shape (rows,) unless stated otherwise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo(
    log_ratio_chosen: Tensor,
    log_ratio_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    margin: Tensor | float = 0.0,
) -> Tensor:
    """Return the loss of direct preference optimization (arXiv 2305.18290, equation 7; smoothing as in its cDPO note).

    -(1-ε)·log σ(u) - ε·log σ(-u), with u = β·Δ - margin and Δ = (π_c - ref_c) - (π_r - ref_r).

    Args:
        log_ratio_chosen: log π(chosen) - log ref(chosen); divided by the completion's length in the normalized variant.
        log_ratio_rejected: the same for the rejected completion.
        beta: strength of the KL penalty; larger stays closer to the reference.
        label_smoothing: ε, the probability that a label is wrong.
        margin: how far β·Δ should be above zero, shape (rows,) or a number.

    Returns:
        One loss per pair; exactly ln 2 if the policy equals the reference and the margin is 0.
    """
    logits = beta * (log_ratio_chosen - log_ratio_rejected) - margin
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def kto(
    log_ratio: Tensor,
    desirable: Tensor,
    *,
    z0: Tensor | float,
    beta: float,
    weight_desirable: float,
    weight_undesirable: float,
) -> Tensor:
    """Return the loss of Kahneman–Tversky optimization (arXiv 2402.01306, equation 8): λ - value.

    The value is λ_D·σ(β(r - z0)) for a desirable completion and λ_U·σ(β(z0 - r)) for an undesirable one.

    Args:
        log_ratio: r = log π(y|x) - log ref(y|x).
        desirable: 1 if the completion was liked, else 0.
        z0: the reference point, an estimate of KL(π‖ref) that carries no gradient.
        beta: how fast gains and losses saturate.
        weight_desirable: λ_D.
        weight_undesirable: λ_U.

    Returns:
        One loss per completion, between 0 and its λ.
    """
    gain = beta * (log_ratio - z0)
    liked = desirable > 0.5
    value = torch.sigmoid(torch.where(liked, gain, -gain))
    return torch.where(liked, weight_desirable * (1 - value), weight_undesirable * (1 - value))


def bradley_terry(chosen: Tensor, rejected: Tensor, *, margin: Tensor | float = 0.0) -> Tensor:
    """Return the reward-model loss -log σ(r_c - r_r - margin).

    Sources: arXiv 2203.02155, equation 1; the margin is that of 2307.09288, equation 2.

    Args:
        chosen: scores of the preferred completions.
        rejected: scores of the rejected completions.
        margin: how far the chosen score should be above the rejected one, shape (rows,) or a number.

    Returns:
        One loss per pair; ln 2 if both scores are equal and the margin is 0.
    """
    return -F.logsigmoid(chosen - rejected - margin)
