"""Log-probabilities of tokens without the (tokens, vocabulary) logits ever being held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**23
"""Logits that exist at one time: 32 MiB in float32."""


@dataclass(frozen=True, slots=True)
class HeadShape:
    """What an architecture does between its last hidden state and the softmax: logits = cap·tanh(scale·(hW+b)/cap)/T.

    Attributes:
        scale: factor on the logits (Cohere, Granite).
        softcap: Gemma 2's soft cap; None without.
        temperature: sampling temperature T.
    """

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0


def fused_token_logps(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, shape: HeadShape | None = None
) -> tuple[Tensor, Tensor]:
    """log softmax(head(hidden))[target] and the distribution's entropy.

    With a frozen head the gradient of a token's log-probability with respect to its hidden state, (onehot - p)·W, is
    one vector; it is computed in the forward pass while the chunk's logits exist, so that backward is a multiplication
    and nothing is recomputed. A trainable head (full-parameter training) recomputes each chunk in backward instead.

    Args:
        hidden: (tokens, width), the states that predict `targets`.
        weight: (vocabulary, width).
        targets: (tokens,), int64.
        bias: (vocabulary,), if the head has one.
        shape: scale, soft cap and temperature.

    Returns:
        Log-probabilities and entropies (no gradient), both (tokens,) float32, in nats.
    """
    shape = shape or HeadShape()
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return _recomputed(hidden, weight, targets, bias, shape)
    logps, entropy = _Fused.apply(hidden, weight, targets, bias, shape)  # type: ignore[no-untyped-call]
    return logps, entropy.detach()


def _chunks(tokens: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, min(start + size, tokens)) for start in range(0, max(tokens, 1), size)]


def _matmul_float32(left: Tensor, right: Tensor) -> Tensor:
    """Product in float32 without a float32 copy of the head where the device can accumulate into float32 output."""
    if left.dtype == torch.float32 and right.dtype == torch.float32:
        return left @ right
    if left.is_cuda:
        return torch.mm(left.to(right.dtype), right, out_dtype=torch.float32)
    return left.float() @ right.float()


def head_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, shape: HeadShape) -> Tensor:
    """Logits in float32, shape (tokens, vocabulary): only ever for a chunk of tokens."""
    logits = _matmul_float32(hidden, weight.t())
    if bias is not None:
        logits = logits + bias.float()
    if shape.scale != 1.0:
        logits = logits * shape.scale
    if shape.softcap is not None:
        logits = shape.softcap * torch.tanh(logits / shape.softcap)
    return logits if shape.temperature == 1.0 else logits / shape.temperature


def _read(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of the targets, entropy, and the probabilities themselves."""
    log_z = torch.logsumexp(logits, dim=-1)
    picked = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
    probabilities = torch.exp(logits - log_z.unsqueeze(1))
    entropy = log_z - (probabilities * logits).sum(dim=-1)
    return picked - log_z, entropy, probabilities


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, shape: HeadShape
    ) -> tuple[Tensor, Tensor]:
        tokens = hidden.shape[0]
        logps = hidden.new_empty(tokens, dtype=torch.float32)
        entropy = torch.empty_like(logps)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for part in _chunks(tokens, weight.shape[0]):
            logits = head_logits(hidden[part], weight, bias, shape)
            logps[part], entropy[part], probabilities = _read(logits, targets[part])
            if gradient is not None:
                gradient[part] = _gradient(probabilities, logits, targets[part], weight, shape).to(hidden.dtype)
        ctx.mark_non_differentiable(entropy)
        ctx.save_for_backward(gradient if gradient is not None else hidden.new_empty(0))
        return logps, entropy

    @staticmethod
    def backward(ctx: Any, grad_logps: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_logps.unsqueeze(1).to(gradient.dtype), None, None, None, None)


def _gradient(probabilities: Tensor, logits: Tensor, targets: Tensor, weight: Tensor, shape: HeadShape) -> Tensor:
    """d logp / d hidden: (onehot - p) through temperature, soft cap and scale, times W."""
    d_logits = probabilities.neg_()
    d_logits.scatter_add_(1, targets.unsqueeze(1), torch.ones_like(targets, dtype=d_logits.dtype).unsqueeze(1))
    if shape.softcap is not None:
        d_logits *= 1 - (logits * (shape.temperature / shape.softcap)) ** 2
    if (factor := shape.scale / shape.temperature) != 1.0:
        d_logits *= factor
    return _matmul_float32(d_logits.to(weight.dtype), weight)


def _recomputed(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, shape: HeadShape
) -> tuple[Tensor, Tensor]:
    def chunk(states: Tensor, picked: Tensor) -> tuple[Tensor, Tensor]:
        logps, entropy, _ = _read(head_logits(states, weight, bias, shape), picked)
        return logps, entropy.detach()

    parts = [
        checkpoint(chunk, hidden[part], targets[part], use_reentrant=False, preserve_rng_state=False)
        for part in _chunks(hidden.shape[0], weight.shape[0])
    ]
    return torch.cat([logps for logps, _ in parts]), torch.cat([entropy for _, entropy in parts])
