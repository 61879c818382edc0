"""Log-probabilities of tokens, computed without storing the (tokens, vocabulary) logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from alignment_core.devices import for_card

CHUNK_ELEMENTS, CARD_CHUNK_ELEMENTS = 2**24, 2**25
"""Most logits that exist at a time on a CPU and on a card: 64 and 128 MiB in float32. Smaller chunks would read the
head's weights too often. A card multiplies 440 tokens in about the time in which it reads a head of 152k words; half of
that takes 0.5 GiB less for the three copies of a chunk, with which 8B models fit smaller cards."""
CHUNK_TOKENS = 192
"""Most tokens in a chunk on a CPU. Above this, each pass allocates fresh memory, which costs a fault per page."""
WEIGHED_TOGETHER = 8
"""Tokens whose probabilities and logits a CPU multiplies at a time, so that the products stay in its cache."""


@dataclass(frozen=True, slots=True)
class HeadShape:
    """How an architecture turns its last hidden state into logits: cap·tanh(scale·(hW+b)/cap)/T.

    Attributes:
        scale: factor on the logits (Cohere, Granite).
        softcap: Gemma 2's soft cap; None if there is none.
        temperature: sampling temperature T.
    """

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0


def fused_token_logps(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, shape: HeadShape | None = None
) -> tuple[Tensor, Tensor]:
    """Return log softmax(head(hidden))[target] and the entropy of the distribution.

    With a frozen head, the gradient of a token's log-probability with respect to its hidden state is one vector,
    (onehot - p)·W. The forward pass computes it while the chunk's logits exist. Backward is then one multiplication
    and recomputes nothing. With a trainable head (full-parameter training), backward recomputes each chunk instead.

    Args:
        hidden: (tokens, width), the states that predict `targets`.
        weight: (vocabulary, width).
        targets: (tokens,), int64.
        bias: (vocabulary,), if the head has one.
        shape: scale, soft cap and temperature.

    Returns:
        Log-probabilities and entropies, both (tokens,) float32, in nats. The entropies carry no gradient.
    """
    shape = shape or HeadShape()
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return _recomputed(hidden, weight, targets, bias, shape)
    logps, entropy = _Fused.apply(hidden, weight, targets, bias, shape)  # type: ignore[no-untyped-call]
    return logps, entropy.detach()


def token_logps_of(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and entropies from given logits, for models whose logits are not only head(hidden).

    Args:
        logits: (tokens, vocabulary).
        targets: (tokens,), int64.
        temperature: divides the logits.

    Returns:
        The same as `fused_token_logps`.
    """
    logps, entropy, _ = _read(logits.float() / temperature, targets)
    return logps, entropy.detach()


def _chunks(hidden: Tensor, vocabulary: int) -> list[slice]:
    tokens = len(hidden)
    size = CARD_CHUNK_ELEMENTS // vocabulary if for_card(hidden) else min(CHUNK_ELEMENTS // vocabulary, CHUNK_TOKENS)
    size = max(1, size)
    return [slice(start, min(start + size, tokens)) for start in range(0, max(tokens, 1), size)]


def _matmul_float32(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the product in float32."""
    if _writes_float32(left, right):
        return torch.mm(left.to(right.dtype), right, out_dtype=torch.float32)
    return torch.mm(left.float(), right.float(), out=out)


def _writes_float32(left: Tensor, right: Tensor) -> bool:
    """Return whether the product of 16-bit matrices can have float32 output, so that they are not copied to float32.

    A GPU can write it. PyTorch has no derivative of that product, so a head that learns is copied.
    """
    learns = torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)
    return for_card(left) and right.dtype != torch.float32 and not learns


@contextmanager
def _multiplied_as_bf16() -> Iterator[None]:
    """Make a CPU multiply float32 matrices as bf16 and sum in float32.

    This is exact for values that came from bf16, and three times as fast.
    """
    # torch replaces this module with an object at import, which type checkers do not see.
    setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


def head_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, shape: HeadShape, out: Tensor | None = None
) -> Tensor:
    """Return the float32 logits of one chunk, shape (tokens, vocabulary). `out` is an optional buffer for them."""
    logits = _matmul_float32(hidden, weight.t(), out)
    if bias is not None:
        logits = logits.add_(bias.float())
    if shape.scale != 1.0:
        logits = logits.mul_(shape.scale)
    if shape.softcap is not None:
        logits = shape.softcap * torch.tanh(logits / shape.softcap)
    return logits if shape.temperature == 1.0 else logits.div_(shape.temperature)


def _read(logits: Tensor, targets: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-probabilities of the targets, the entropies, and the probabilities (in `out` if given)."""
    probabilities = torch.softmax(logits, dim=-1, out=out)
    # log Σ exp, derived from the likeliest token: the softmax has already computed exp and the sum.
    log_z = logits.amax(dim=-1) - probabilities.amax(dim=-1).log()
    picked = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
    entropy = log_z - _mean(logits, probabilities)
    return picked - log_z, entropy, probabilities


def _mean(logits: Tensor, probabilities: Tensor) -> Tensor:
    together = max(1, len(logits)) if for_card(logits) else WEIGHED_TOGETHER
    pairs = zip(*(torch.split(whole, together) for whole in (probabilities, logits)), strict=True)
    return torch.cat([torch.linalg.vecdot(*pair) for pair in pairs])


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, shape: HeadShape
    ) -> tuple[Tensor, Tensor]:
        vocabulary = weight.shape[0]
        logps = hidden.new_empty(len(hidden), dtype=torch.float32)
        entropy = torch.empty_like(logps)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        parts = _chunks(hidden, vocabulary)
        # Once for all chunks: a CPU has no bf16 product with float32 output, and allocates fresh memory slowly.
        wide = weight if for_card(weight) else weight.float()
        space = [None if for_card(weight) else logps.new_empty(parts[0].stop, vocabulary) for _ in range(2)]
        from_bf16 = hidden.dtype == weight.dtype == torch.bfloat16 and not for_card(weight)
        for part in parts:
            first, second = (whole if whole is None else whole[: part.stop - part.start] for whole in space)
            with _multiplied_as_bf16() if from_bf16 else nullcontext():
                logits = head_logits(hidden[part], wide, bias, shape, out=first)
            logps[part], entropy[part], probabilities = _read(logits, targets[part], out=second)
            if gradient is not None:
                d_logits = _d_logits(probabilities, logits, targets[part], shape)
                gradient[part] = _times_head(d_logits, weight, wide, hidden.dtype)
        ctx.mark_non_differentiable(entropy)
        ctx.save_for_backward(gradient if gradient is not None else hidden.new_empty(0))
        return logps, entropy

    @staticmethod
    def backward(ctx: Any, grad_logps: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_logps.unsqueeze(1).to(gradient.dtype), None, None, None, None)


def _d_logits(probabilities: Tensor, logits: Tensor, targets: Tensor, shape: HeadShape) -> Tensor:
    """Return d logp / d (hW+b): (onehot - p) through temperature, soft cap and scale. Overwrites `probabilities`."""
    d_logits = probabilities.neg_()
    d_logits.scatter_add_(1, targets.unsqueeze(1), torch.ones_like(targets, dtype=d_logits.dtype).unsqueeze(1))
    if shape.softcap is not None:
        d_logits *= 1 - (logits * (shape.temperature / shape.softcap)) ** 2
    if (factor := shape.scale / shape.temperature) != 1.0:
        d_logits *= factor
    return d_logits


def _times_head(d_logits: Tensor, weight: Tensor, wide: Tensor, dtype: torch.dtype) -> Tensor:
    """Return d logp / d hidden.

    If the states have the head's dtype, the product is computed in it, because the result is rounded to it anyway.
    """
    if dtype == weight.dtype:
        return d_logits.to(dtype) @ weight
    return _matmul_float32(d_logits, wide)


def _recomputed(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, shape: HeadShape
) -> tuple[Tensor, Tensor]:
    def chunk(states: Tensor, picked: Tensor) -> tuple[Tensor, Tensor]:
        logps, entropy, _ = _read(head_logits(states, weight, bias, shape), picked)
        return logps, entropy.detach()

    parts = [
        checkpoint(chunk, hidden[part], targets[part], use_reentrant=False, preserve_rng_state=False)
        for part in _chunks(hidden, weight.shape[0])
    ]
    return torch.cat([logps for logps, _ in parts]), torch.cat([entropy for _, entropy in parts])
