"""Packed rows give the same numbers and gradients as separate sequences, and do not see their neighbors."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, save_model
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignment_core.config import LoraConfig
from alignment_core.models.base.loading import load_base
from alignment_core.models.passes.layout import Layout
from alignment_core.models.passes.packed_attention import _attend
from alignment_core.models.passes.packing import LEAST_SHARED, pack_by_budget, packed, shared_prompt_groups
from alignment_core.models.roles.logps import Budget, LanguageModel, ScalarModel
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import TokenSequence


def roles_of(folder: Path) -> Roles:
    roles = Roles(load_base(str(folder), revision=None, load_in="fp32", device=torch.device("cpu")), str(folder))
    roles.add_new("policy", LoraConfig(rank=2), seed=0)
    roles.add_head("policy", torch.randn(1, 32, generator=torch.Generator().manual_seed(0)))
    roles.train_only(["policy"])
    for name, weight in roles.parameters().items():
        if "lora_B" in name:  # zero initially, which would make the gradient of A zero too
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(1))
    return roles


def pairs(count: int, seed: int = 0, prompt: int = 20) -> list[TokenSequence]:
    """Return two completions of each prompt, of many lengths, one partly masked and one empty."""
    source = random.Random(seed)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(source.randrange(3, 250) for _ in range(length))

    found = []
    for n in range(count):
        shared = tokens(prompt + n)
        found += [TokenSequence((*shared, *tokens(length)), len(shared)) for length in (source.randrange(1, 9), n)]
    first = found[0]
    found[0] = TokenSequence(first.ids, first.start, tuple(i % 2 == 0 for i in range(len(first.completion))))
    return found


def results(roles: Roles, sequences: list[TokenSequence], budget: int) -> tuple[Tensor, ...]:
    """Return log-probabilities, scores, values, and all gradients of their weighted sum."""
    policy = LanguageModel(roles, "policy", 0, Budget(budget))
    scalar = ScalarModel(roles, "policy", 0, Budget(budget))
    for weight in roles.parameters().values():
        weight.grad = None
    logps, scores, values = policy.logps(sequences), scalar.scores(sequences), scalar.values(sequences)
    factors = torch.linspace(-1, 1, len(sequences))
    ((logps + scores + values.sum(1)) * factors).sum().backward()  # type: ignore[no-untyped-call]
    gradients = [weight.grad for weight in roles.parameters().values()]
    assert all(gradient is not None for gradient in gradients)
    return logps.detach(), scores.detach(), values.detach(), *(g for g in gradients if g is not None)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_rows_match_padded_batches(name: str, checkpointing: bool, tmp_path: Path) -> None:
    roles = roles_of(save_model(name, tmp_path))
    roles.checkpoint_layers(checkpointing)
    # Gemma 2 caps attention scores, which packed attention cannot. RecurrentGemma carries a state between tokens.
    assert roles.packs == (name not in {"gemma2", "recurrent gemma"})
    sequences = pairs(5)
    ours = results(roles, sequences, 10_000)
    in_parts = results(roles, sequences, 70)
    roles.packs = False
    for one, theirs in ((ours, results(roles, sequences, 10_000)), (in_parts, ours)):
        for a, b in zip(one, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("window", [None, 5, 40])
@pytest.mark.parametrize("before", [0, 17])
@pytest.mark.parametrize("length", [1, 31, 32, 45])
def test_bf16_padding_to_multiples_of_32_changes_nothing(length: int, before: int, window: int | None) -> None:
    """Compare attention on a CPU in bf16, padded to multiples of 32 tokens, with float32, which is not padded."""
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(1, 2, n, 8, generator=generator) for n in (length, before + length, before + length)]
    above = torch.randn(1, 2, length, 8, generator=generator)
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        leaves = [tensor.bfloat16().to(dtype).requires_grad_() for tensor in given]
        found = _attend(*leaves, Layout(()), scale=None, window=window)
        assert found.shape == above.shape
        results.append([found.detach(), *torch.autograd.grad(found, leaves, above.bfloat16().to(dtype))])
    for narrow, wide in zip(*results, strict=True):
        assert float((narrow - wide).norm()) <= 0.02 * float(wide.norm())


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Roles:
    return roles_of(save_model("llama", tmp_path_factory.mktemp("llama")))


def test_changing_a_sequence_does_not_affect_its_neighbors(llama: Roles) -> None:
    policy = LanguageModel(llama, "policy", 0, Budget(10_000))
    first = pairs(4)
    for changed in (i for i, sequence in enumerate(first) if sequence.completion):
        second = list(first)
        ids = list(first[changed].ids)
        ids[-1] = ids[-1] % 200 + 3
        second[changed] = TokenSequence(tuple(ids), first[changed].start, first[changed].mask)
        with torch.no_grad():
            before, after = policy.token_logps(first), policy.token_logps(second)
        others = [i for i in range(len(first)) if i != changed]
        assert torch.equal(before.logps[others], after.logps[others])


def test_shared_prompt_is_computed_once() -> None:
    sequences = pairs(3)
    row = packed(sequences)
    assert row.ids.shape == (1, 20 + 21 + 22 + sum(len(s.completion) for s in sequences))
    for sequence, places in zip(sequences, row.places, strict=True):
        assert tuple(row.ids[0, places].tolist()) == sequence.ids
        assert row.positions is not None
        assert row.positions[0, places].tolist() == list(range(len(sequence.ids)))


@st.composite
def items(draw: st.DrawFn) -> list[list[TokenSequence]]:
    lengths = st.integers(1, 3 * LEAST_SHARED)
    prompts = [tuple(range(k, k + draw(lengths))) for k in range(draw(st.integers(1, 3)))]
    sequence = st.builds(
        lambda prompt, length: TokenSequence((*prompt, *[7] * length), len(prompt)),
        st.sampled_from(prompts),
        st.integers(0, 20),
    )
    return draw(st.lists(st.lists(sequence, min_size=1, max_size=3), max_size=8))


@given(items(), st.integers(1, 200))
def test_rows_contain_every_item_once_within_the_budget(found: list[list[TokenSequence]], budget: int) -> None:
    groups = pack_by_budget(found, budget, lambda item: item)
    assert sorted(i for group in groups for i in group) == list(range(len(found)))
    for group in groups:
        tokens = packed([sequence for i in group for sequence in found[i]]).ids.numel()
        assert tokens <= budget or len(group) == 1


def test_sequences_that_share_a_prompt_are_grouped() -> None:
    long, short = (5,) * LEAST_SHARED, (5,) * (LEAST_SHARED - 1)
    sequences = [TokenSequence((*prompt, 9), len(prompt)) for prompt in (long, short, long, short)]
    assert shared_prompt_groups(sequences) == [[0, 2], [1], [3]]
    assert pack_by_budget(sequences, LEAST_SHARED + 2, lambda sequence: (sequence,)) == [[0, 2], [1], [3]]
