"""What the sampling pass keeps of its tokens equals the plain model, read alone and without a cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import save_model
from engine import ENOUGH, LORA, PAD, disturb, naive_token_logps, open_roles, sequences
from every_architecture import save_small

from alignment_core.models.generation.choice import Sampling
from alignment_core.models.generation.response import Response
from alignment_core.models.generation.sampling import decoding_of, generate
from alignment_core.models.roles.logps import Budget
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import TokenSequence

STOPS = tuple(range(2, 20))
NEW = 14


def sample(roles: Roles, prompts: list[TokenSequence], budget: int, sampling: Sampling) -> list[Response]:
    return generate(
        roles, "policy", prompts, noise_keys=[f"{i}" for i in range(len(prompts))], sampling=sampling,
        stop_ids=STOPS, pad_id=PAD, budget=Budget(budget), on_step=lambda _: None,
    )  # fmt: skip


def naive_entropies(model: torch.nn.Module, sequence: TokenSequence, temperature: float) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([sequence.ids]), use_cache=False).logits[0].double() / temperature
    logps = torch.log_softmax(logits[sequence.start - 1 : -1], dim=-1)
    return -(logps.exp() * logps).sum(-1)


# Slots, windows in slots, padded batches of a hybrid, batches of equal length, and no cache at all.
@pytest.mark.parametrize("name", ["llama", "gemma2", "recurrent gemma", "mamba", "openai-gpt"])
@pytest.mark.parametrize("budget", [60, ENOUGH])
def test_logps_and_entropies_are_those_of_the_plain_model(tmp_path: Path, name: str, budget: int) -> None:
    """Every second prompt is the first one, rows end at different steps, and their places are taken by others."""
    save = save_small if name == "openai-gpt" else save_model
    roles = open_roles(save(name, tmp_path))
    roles.add_new("policy", LORA, 0)
    disturb(roles, "policy", 3)
    others = [TokenSequence(one.prompt, one.start) for one in sequences(5, 0, prompt=18)]
    shared = TokenSequence(tuple(range(40, 52)), 12)
    prompts = [prompt for other in others for prompt in (shared, other)]
    responses = sample(roles, prompts, budget, Sampling(NEW, 0.7, logps=True))
    assert len({len(response.sequence.completion) for response in responses}) > 2
    assert len({response.sequence.ids for response in responses if response.sequence.prompt == shared.ids}) > 1
    with roles.use("policy"), torch.no_grad():
        for response in responses:
            assert response.logps is not None
            assert response.entropies is not None
            expected = naive_token_logps(roles.model, response.sequence, 0.7)
            torch.testing.assert_close(torch.tensor(response.logps).double(), expected, rtol=1e-4, atol=1e-4)
            entropies = naive_entropies(roles.model, response.sequence, 0.7)
            torch.testing.assert_close(torch.tensor(response.entropies).double(), entropies, rtol=1e-4, atol=1e-4)
    without = sample(roles, prompts, budget, Sampling(NEW, 0.7))
    assert [one.sequence for one in without] == [one.sequence for one in responses]
    assert {(one.logps, one.entropies) for one in without} == {(None, None)}


def test_equal_prompts_without_slots_share_their_batch(tmp_path: Path) -> None:
    """A recurrent model reads a prompt once for all of its responses, which are those that it gives alone."""
    roles = open_roles(save_model("mamba", tmp_path))
    roles.add_base("policy")
    assert not decoding_of(roles, "policy").together
    shapes: list[tuple[int, ...]] = []
    hook = roles.model.register_forward_pre_hook(
        lambda *given: shapes.append(tuple(given[2]["input_ids"].shape)), with_kwargs=True
    )
    one, other = TokenSequence(tuple(range(40, 55)), 15), TokenSequence(tuple(range(60, 75)), 15)
    longer = TokenSequence(tuple(range(20, 40)), 20)
    prompts = [one, other, longer, one, other, one]
    together = sample(roles, prompts, ENOUGH, Sampling(NEW, 2.0))
    hook.remove()
    assert [shape for shape in shapes if shape[1] > 1] == [(1, 20), (2, 15)]
    assert len(shapes) <= 2 * NEW  # one step at a time for all rows of a length
    for i, prompt in enumerate(prompts):
        (alone,) = generate(
            roles, "policy", [prompt], noise_keys=[f"{i}"], sampling=Sampling(NEW, 2.0), stop_ids=STOPS, pad_id=PAD,
            budget=Budget(ENOUGH), on_step=lambda _: None,
        )  # fmt: skip
        assert alone == together[i]
