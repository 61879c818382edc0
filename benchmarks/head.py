"""Measure the output head alone: log-probabilities and their gradient, in tokens per second of CPU time.

OMP_NUM_THREADS=1 python benchmarks/head.py
"""

from __future__ import annotations

import resource

import torch

from alignment_core.losses.likelihood import fused_token_logps

WIDTH, REPEATS = 512, 3


def main() -> None:
    for vocabulary, tokens in ((32_000, 1300), (128_000, 500)):
        for dtype in (torch.float32, torch.bfloat16):
            best = min(seconds(vocabulary, tokens, dtype) for _ in range(REPEATS))
            print(f"vocabulary of {vocabulary}, {dtype}: {tokens / best:.0f} tokens/s")


def seconds(vocabulary: int, tokens: int, dtype: torch.dtype) -> float:
    """Return the CPU seconds of one forward and backward pass."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, WIDTH).to(dtype).requires_grad_()
    weight = (0.02 * torch.randn(vocabulary, WIDTH)).to(dtype)
    targets = torch.randint(vocabulary, (tokens,))
    before = cpu()
    logps, _ = fused_token_logps(hidden, weight, targets)
    logps.sum().backward()  # type: ignore[no-untyped-call]
    return cpu() - before


def cpu() -> float:
    """Return the CPU seconds of this process, including kernel time, because allocating memory is part of the cost."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
