"""The choice of a token inverts the cumulative distribution, in blocks and in float32 as in one float64 sum."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from alignment_core.models.generation import choice
from alignment_core.models.generation.choice import BLOCK, Sampling, choose

ROWS = 64


def logits_and_uniforms(vocabulary: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(ROWS, vocabulary, generator=generator)
    return logits, torch.rand(ROWS, generator=generator, dtype=torch.float64)


def inverted_at_once(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Return the tokens from one cumulative sum in float64."""
    cumulative = torch.softmax(logits.double(), -1).cumsum(-1)
    return torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)[:, 0]


@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
@pytest.mark.parametrize("vocabulary", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 7 * BLOCK + 30])
def test_blocks_choose_what_one_sum_chooses(vocabulary: int, spread: float) -> None:
    for seed in range(5):
        logits, uniforms = logits_and_uniforms(vocabulary, spread, seed)
        assert choose(logits, uniforms, Sampling(1)).equal(inverted_at_once(logits, uniforms))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1),
        Sampling(1, 0.7),
        pytest.param(Sampling(1, top_p=0.9), marks=pytest.mark.slow),
        Sampling(1, top_k=50),
    ],
)
def test_float32_chooses_the_same_tokens(sampling: Sampling) -> None:
    """Of 2048 draws from distributions over 50,000 tokens, at most one falls between the two sums."""
    different = 0
    for seed in range(32):
        logits, uniforms = logits_and_uniforms(50_000, (1.0, 3.0, 6.0)[seed % 3], seed)
        exact = choose(logits, uniforms, sampling)
        different += int((choose(logits, uniforms, sampling, torch.float32) != exact).sum())
    assert different <= 1


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_random_draws_follow_the_distribution(precision: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3 * BLOCK + 7, generator=generator)
    count = 400_000
    uniforms = torch.rand(count, generator=generator, dtype=torch.float64)
    found = torch.cat(
        [choose(logits.expand(len(some), -1), some, Sampling(1), precision) for some in uniforms.split(8000)]
    )
    counts = torch.bincount(found, minlength=logits.shape[1])
    expected = torch.softmax(logits[0].double(), -1) * count
    assert chisquare(counts.numpy(), expected.numpy()).pvalue > 0.001


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_ends_of_the_interval_choose_possible_tokens(precision: torch.dtype) -> None:
    """Blocks and tokens of probability 0 surround the possible ones, which lie on both sides of a block's end."""
    logits = torch.full((1, 4 * BLOCK), -float("inf"))
    logits[0, 2 * BLOCK - 1] = logits[0, 2 * BLOCK] = 1.0
    for uniform, expected in ((0.0, 2 * BLOCK - 1), (0.5, 2 * BLOCK), (1 - 2**-53, 2 * BLOCK)):
        drawn = torch.tensor([uniform], dtype=torch.float64)
        assert choose(logits, drawn, Sampling(1), precision).item() == expected


def test_rows_are_chosen_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, uniforms = logits_and_uniforms(40, 2.0, 0)
    expected = choose(logits, uniforms, Sampling(1))
    monkeypatch.setattr(choice, "CHOSEN_TOGETHER", 100)
    assert choose(logits, uniforms, Sampling(1)).equal(expected)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_the_largest_uniform_chooses_no_token_behind_the_last_possible_one(precision: torch.dtype) -> None:
    """The sum of a block may differ in its last bits from the last of its cumulative sums, and so may the threshold."""
    logits, _ = logits_and_uniforms(BLOCK, 1.0, 0)
    logits[:, BLOCK - 9 :] = -float("inf")
    drawn = torch.full((ROWS,), 1 - 2**-53, dtype=torch.float64)
    assert choose(logits, drawn, Sampling(1), precision).max() < BLOCK - 9
