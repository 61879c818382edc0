"""The choice of the next token of each row from its logits and its noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment_core.errors import ModelError

CHOSEN_TOGETHER = 2**22
"""Most logits from which tokens are chosen at a time: 128 MiB, including all intermediate tensors."""
BLOCK = 512
"""Tokens whose probabilities are summed to find the block of the chosen one."""
NO_TOKEN = -1
"""What is chosen from logits that contain NaN. It reaches the host with the tokens, so that nothing waits twice."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: longest response.
        temperature: divides the logits; 0 is greedy.
        top_p: keep the smallest set of tokens whose probability reaches this; 1 keeps all.
        top_k: keep the k likeliest tokens; 0 keeps all.
        logps: whether the log-probabilities and entropies of the tokens are kept.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    logps: bool = False


def choose(logits: Tensor, uniform: Tensor, sampling: Sampling, precision: torch.dtype | None = None) -> Tensor:
    """Return the next token of each row: greedy, or by inverting the cumulative distribution at the row's uniform.

    Args:
        logits: shape (rows, vocabulary).
        uniform: shape (rows,), in [0, 1), float64.
        sampling: temperature is applied first, then top-k, then top-p, as in transformers.
        precision: of the probabilities; sums are float64. None: float64 on a CPU and float32 elsewhere, because
            consumer GPUs compute a float64 exponential at 1/64 of the speed.

    Returns:
        Token ids, shape (rows,); `NO_TOKEN` for a row whose logits contain NaN.
    """
    if precision is None:
        precision = torch.float64 if logits.device.type == "cpu" else torch.float32
    # A few rows at a time, because this takes several times the memory of the logits.
    rows = max(1, CHOSEN_TOGETHER // logits.shape[-1])
    parts = zip(torch.split(logits, rows), torch.split(uniform, rows), strict=True)
    return torch.cat([_choose(some, its_uniform, sampling, precision) for some, its_uniform in parts])


def tokens_on_host(tokens: Tensor, rows: Sequence[int]) -> list[int]:
    """Return the chosen tokens of these rows.

    Raises:
        ModelError: the logits of one of them contained NaN, from which an arbitrary token would be chosen.
    """
    found = tokens.tolist()
    chosen: list[int] = [found[row] for row in rows]
    if NO_TOKEN in chosen:
        raise ModelError(
            "the model's logits contain NaN",
            where="generation",
            do="Check the base model and the adapter for broken weights, or choose another `model.load_in`",
        )
    return chosen


def _choose(logits: Tensor, uniform: Tensor, sampling: Sampling, precision: torch.dtype) -> Tensor:
    if sampling.temperature == 0:
        tokens = logits.argmax(dim=-1)  # of NaN, if there is one
        return tokens.where(~logits.gather(1, tokens.unsqueeze(1)).squeeze(1).isnan(), NO_TOKEN)
    scaled = logits if sampling.temperature == 1 else logits / sampling.temperature
    probabilities = torch.softmax(scaled, dim=-1, dtype=precision)
    broken = probabilities[:, 0].isnan()  # one NaN makes all probabilities of its row NaN
    if sampling.top_k > 0:
        least = probabilities.topk(min(sampling.top_k, probabilities.shape[-1])).values[:, -1:]
        probabilities = probabilities.where(probabilities >= least, 0.0)
    if sampling.top_p < 1:
        probabilities = _nucleus(probabilities, sampling.top_p)
    return _invert(probabilities, uniform).where(~broken, NO_TOKEN)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    ordered, index = probabilities.sort(dim=-1, descending=True)
    cumulative = ordered.cumsum(dim=-1, dtype=torch.float64)
    before = cumulative - ordered
    kept = ordered.where(before < top_p * cumulative[:, -1:], 0.0)
    return torch.zeros_like(probabilities).scatter(1, index, kept)


def _invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Return the first token of each row up to which the probabilities exceed their total times the uniform.

    The sums are float64, so that they are as exact as the probabilities. Only those of whole blocks, and those within
    the block of the token, are made cumulative: that takes little time on any device.
    """
    width = probabilities.shape[-1]
    whole = width - width % BLOCK
    blocks = probabilities[:, :whole].reshape(len(probabilities), whole // BLOCK, BLOCK).sum(-1, dtype=torch.float64)
    if whole < width:
        rest = probabilities[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)
        blocks = torch.cat([blocks, rest], dim=1)
    ends = blocks.cumsum(dim=-1)
    threshold = uniform.unsqueeze(1) * ends[:, -1:]
    block = _first_above(ends, threshold)
    places = block * BLOCK + torch.arange(BLOCK, device=block.device)
    inside = probabilities.gather(1, places.clamp_max(width - 1)).where(places < width, 0.0)
    before = ends.gather(1, block) - blocks.gather(1, block)
    within = _first_above(inside.cumsum(dim=-1, dtype=torch.float64), (threshold - before).clamp_min(0))
    return (block * BLOCK + within).squeeze(1)


def _first_above(cumulative: Tensor, threshold: Tensor) -> Tensor:
    """Return the index of the first sum above the threshold, shape (rows, 1), or of the last part that adds to it.

    Rounding may put a threshold at the total, behind which there are only tokens of probability 0.
    """
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    found = torch.searchsorted(cumulative, threshold, right=True).minimum(last)
    return found.clamp_max(cumulative.shape[-1] - 1)  # of NaN, nothing is above anything
