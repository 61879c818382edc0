"""Time a layer's norm, rotary embedding and packed attention with and without our changes, forward and backward, in ms.

OMP_NUM_THREADS=1 LRU_CACHE_CAPACITY=64 ONEDNN_PRIMITIVE_CACHE_CAPACITY=64 python benchmarks/layers.py
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama

from alignment_core.models.passes import packed_attention
from alignment_core.models.passes.layout import Layout, Piece
from alignment_core.models.passes.norms_and_rope import fuse_norms_and_rope
from alignment_core.models.passes.packing import Arrangement, use_arrangement

TOKENS, WIDTH, HEADS, ROWS, REPEATS = 900, 512, 8, 8, 25
SHORTEST, LONGEST = 84, 264
"""Bounds of a piece's length in a packed row, in tokens."""


def main() -> None:
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        theirs = modeling_llama.apply_rotary_pos_emb
        before = norm_and_rotation(dtype, fused=False)
        for name, one, other in zip(("norm", "rotation"), before, norm_and_rotation(dtype, fused=True), strict=True):
            print(f"{name}, {dtype}: transformers {one:.2f} ms, ours {other:.2f} ms")
        modeling_llama.apply_rotary_pos_emb = theirs
    rows = [layout(random.Random(seed)) for seed in range(ROWS)]
    for multiple in (1, packed_attention.ROUND):
        packed_attention.ROUND = multiple
        print(f"attention, torch.bfloat16, padded to multiples of {multiple}: {attention(rows):.2f} ms per piece")


def norm_and_rotation(dtype: torch.dtype, *, fused: bool) -> tuple[float, float]:
    """Return the milliseconds of the norm and of the rotation, for as many tokens as a PPO micro-batch has."""
    norm = modeling_llama.LlamaRMSNorm(WIDTH).to(dtype).requires_grad_(False)
    if fused:
        fuse_norms_and_rope(norm)
    states, (query, key, _) = leaf(dtype, 1, TOKENS, WIDTH), heads(dtype, TOKENS)
    cos, sin = (torch.randn(1, TOKENS, WIDTH // HEADS).to(dtype) for _ in range(2))
    rotate = modeling_llama.apply_rotary_pos_emb
    return (
        milliseconds(lambda: [norm(states)], [states]),
        milliseconds(lambda: rotate(query, key, cos, sin), [query, key]),
    )


def attention(rows: Sequence[Layout]) -> float:
    """Return the milliseconds per piece for a series of packed rows with pieces of varying length, as in training."""
    given = [heads(torch.bfloat16, row.pieces[-1].stop) for row in rows]

    def forward() -> list[Tensor]:
        found = []
        for row, (query, key, value) in zip(rows, given, strict=True):
            with use_arrangement(Arrangement(torch.empty(0), [], layout=row)):
                found.append(ALL_ATTENTION_FUNCTIONS[packed_attention.IMPLEMENTATION](None, query, key, value, None)[0])
        return found

    return milliseconds(forward, [tensor for one in given for tensor in one]) / sum(len(row.pieces) for row in rows)


def layout(source: random.Random) -> Layout:
    pieces = [Piece(0, source.randint(SHORTEST, LONGEST))]
    while pieces[-1].stop < TOKENS:
        pieces.append(Piece(pieces[-1].stop, pieces[-1].stop + source.randint(SHORTEST, LONGEST)))
    return Layout(tuple(pieces))


def leaf(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape).to(dtype).requires_grad_()


def heads(dtype: torch.dtype, tokens: int) -> list[Tensor]:
    """Return query, key and value, shape (1, heads, tokens, width), with a token's heads adjacent in memory."""
    return [leaf(dtype, 1, tokens, HEADS, WIDTH // HEADS).transpose(1, 2).detach().requires_grad_() for _ in range(3)]


def milliseconds(forward: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor]) -> float:
    """Return the median CPU time of a forward and backward pass."""
    times = []
    for _ in range(REPEATS + 2):
        began = time.process_time()
        found = forward()
        torch.autograd.grad(found, inputs, [torch.ones_like(one) for one in found])
        times.append(time.process_time() - began)
    return 1000 * statistics.median(times[2:])


if __name__ == "__main__":
    main()
