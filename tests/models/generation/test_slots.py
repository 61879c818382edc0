"""Responses in slots: prompts take the place of finished ones, equal prompts are read once, and shapes are fixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import save_model
from engine import ENOUGH, LORA, PAD, disturb, open_roles, sequences
from torch import Tensor

from alignment_core.errors import TrainingError
from alignment_core.models.generation import graph, sampling, slot_batch, slots
from alignment_core.models.generation.choice import Sampling
from alignment_core.models.generation.decoding import Decoding, choose_decoding
from alignment_core.models.generation.sampling import generate, slot_groups
from alignment_core.models.roles.logps import Budget
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import TokenSequence

STOPS = tuple(range(2, 40))


@pytest.fixture(scope="module")
def roles(tiny_model: Path) -> Roles:
    roles = open_roles(tiny_model)
    roles.add_new("policy", LORA, 0)
    disturb(roles, "policy", 3)
    return roles


@pytest.fixture
def shapes(roles: Roles) -> Iterator[list[tuple[int, int]]]:
    """Yield the shape of the ids of every pass."""
    found: list[tuple[int, int]] = []
    hook = roles.model.register_forward_pre_hook(
        lambda *given: found.append(tuple(given[2]["input_ids"].shape)), with_kwargs=True
    )
    yield found
    hook.remove()


def prompts(count: int) -> list[TokenSequence]:
    """Return prompts of at least 3 tokens, so that only steps read one token at a time."""
    return [TokenSequence((3, 4, *one.prompt), 2 + one.start) for one in sequences(count, 0, prompt=18)]


def sample(roles: Roles, found: list[TokenSequence], budget: int, *, longest: int = 30) -> list[TokenSequence]:
    results = generate(
        roles, "policy", found, noise_keys=[f"{i}" for i in range(len(found))], sampling=Sampling(longest, 2.0),
        stop_ids=STOPS, pad_id=PAD, budget=Budget(budget), on_step=lambda _: None,
    )  # fmt: skip
    return [result.sequence for result in results]


def padded(
    roles: Roles, found: list[TokenSequence], monkeypatch: pytest.MonkeyPatch, *, longest: int = 30
) -> list[TokenSequence]:
    """Return the responses that are generated in left-padded batches."""
    with monkeypatch.context() as patched:
        patched.setattr(sampling, "decoding_of", lambda *_: Decoding(argument="past_key_values"))
        return sample(roles, found, ENOUGH, longest=longest)


@pytest.mark.parametrize("budget", [1, 150, 300, ENOUGH])
def test_slots_give_the_responses_of_padded_batches(roles: Roles, monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    assert choose_decoding(roles.model, roles.reach).slots
    found = prompts(24)
    responses = sample(roles, found, budget)
    assert responses == padded(roles, found, monkeypatch)
    assert len({len(response.completion) for response in responses}) > 5


def test_a_finished_response_makes_place_for_a_prompt(roles: Roles, shapes: list[tuple[int, int]]) -> None:
    """While prompts wait, no more than an eighth of the slots are empty."""
    responses = sample(roles, prompts(40), 400 // roles.generation_cache_factor())
    steps = [rows for rows, width in shapes if width == 1]
    slots_used = steps[0]
    generated = sum(len(response.completion) for response in responses)
    assert 4 <= slots_used < 20
    full = [rows for rows in steps if rows == slots_used]
    assert sum(steps) <= generated + len(full) * slots_used / 8
    assert steps == sorted(steps, reverse=True)


def test_equal_prompts_are_read_once(roles: Roles, shapes: list[tuple[int, int]]) -> None:
    one, other = TokenSequence(tuple(range(40, 60)), 20), TokenSequence(tuple(range(60, 75)), 15)
    together = sample(roles, [one] * 4 + [other] * 4, ENOUGH)
    # The last token of a prompt is read by the first step.
    assert [shape for shape in shapes if shape[1] > 1] == [(2, 19)]
    assert len({response.ids for response in together[:4]}) > 1
    for i, prompt in enumerate([one] * 4 + [other] * 4):
        alone = generate(
            roles, "policy", [prompt], noise_keys=[f"{i}"], sampling=Sampling(30, 2.0), stop_ids=STOPS, pad_id=PAD,
            budget=Budget(ENOUGH), on_step=lambda _: None,
        )  # fmt: skip
        assert [one.sequence for one in alone] == [together[i]]


def test_a_prompt_that_a_slot_holds_is_copied(roles: Roles, shapes: list[tuple[int, int]]) -> None:
    """The responses of two prompts, in any order, take turns in a few slots: each prompt is read once."""
    one, other = TokenSequence(tuple(range(40, 60)), 20), TokenSequence(tuple(range(60, 80)), 20)
    found = [one, other] * 8
    together = sample(roles, found, 300 // roles.generation_cache_factor())
    steps = [rows for rows, width in shapes if width == 1]
    assert steps[0] < len(found) / 2
    assert sum(rows for rows, width in shapes if width > 1) == 2
    for i, prompt in enumerate(found):
        (alone,) = generate(
            roles, "policy", [prompt], noise_keys=[f"{i}"], sampling=Sampling(30, 2.0), stop_ids=STOPS, pad_id=PAD,
            budget=Budget(ENOUGH), on_step=lambda _: None,
        )  # fmt: skip
        assert alone.sequence == together[i]


def test_prompts_of_unequal_length_are_read_with_little_padding(
    roles: Roles, shapes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another pass costs as much as reading 10 tokens."""
    monkeypatch.setattr(slots, "call_cost", lambda _: 10)
    found = [TokenSequence(tuple(range(5, 5 + length)), length) for length in (4, 60, 5, 58, 3)]
    responses = sample(roles, found, ENOUGH)
    assert [shape for shape in shapes if shape[1] > 1] == [(2, 59), (3, 4)]
    assert responses == padded(roles, found, monkeypatch)


def test_a_prompt_of_one_token_needs_no_reading(roles: Roles, shapes: list[tuple[int, int]]) -> None:
    sample(roles, [TokenSequence((7,), 1)] * 3, ENOUGH)
    assert {width for _, width in shapes} == {1}


def test_steps_of_fixed_shape_give_the_same_responses(
    roles: Roles, monkeypatch: pytest.MonkeyPatch, shapes: list[tuple[int, int]]
) -> None:
    """Stand in for a graph: a captured step repeats what it did, and so every tensor must still be where it was."""
    found, budget = prompts(40), 400 // roles.generation_cache_factor()
    expected = sample(roles, found, budget)
    graphs: list[int] = []

    def captured(step: Callable[[], Tensor], _: torch.device) -> Callable[[], Tensor]:
        places = addresses(step.__self__)  # type: ignore[attr-defined]
        graphs.append(0)
        step()  # as a capture does to warm up

        def replay() -> Tensor:
            assert addresses(step.__self__) == places  # type: ignore[attr-defined]
            graphs[-1] += 1
            return step()

        return replay

    monkeypatch.setattr(slot_batch, "can_capture", lambda _: True)
    monkeypatch.setattr(slots, "captured", captured)
    monkeypatch.setattr(slots, "COLUMNS", 16)
    shapes.clear()
    assert sample(roles, found, budget) == expected
    steps = [rows for rows, width in shapes if width == 1]
    # Halved at most, and a new graph for every 16 columns or other number of rows.
    assert set(steps) <= {steps[0], *(-(-steps[0] // 2**n) for n in range(1, 6))}
    assert len(graphs) < len(steps) / 4


def addresses(held: slots.Slots) -> list[tuple[int, ...]]:
    buffers = [buffer for layer in held._cache.layers for buffer in layer._buffers]
    tensors = [held.ids, held.positions, held._places.rows, held._places.positions, *buffers]
    return [(tensor.data_ptr(), *tensor.shape) for tensor in tensors]


def test_a_refused_capture_is_logged(
    roles: Roles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each step is then run as it is. Memory that ends while capturing is no refusal."""

    def refuse(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    def fail(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(slot_batch, "can_capture", lambda _: True)
    monkeypatch.setattr(graph, "_capture", refuse)
    found = prompts(6)
    assert sample(roles, found, ENOUGH) == padded(roles, found, monkeypatch)
    assert caplog.text.count("without a CUDA graph") == 1
    monkeypatch.setattr(graph, "_capture", fail)
    with pytest.raises(TrainingError, match="smallest token budget"):
        sample(roles, found, 100)


def test_short_rows_form_a_group_of_their_own_if_it_has_more_slots() -> None:
    assert slot_groups([10, 40, 30, 12, 11], 80) == [([1, 2], 2), ([3, 4, 0], 3)]
    assert slot_groups([10, 40, 30, 12], 80) == [([1, 2, 3, 0], 2)]
    assert slot_groups([40, 39, 38, 10, 12, 11, 9, 15], 40) == [([0, 1, 2], 1), ([7, 4, 5, 3, 6], 2)]
    assert slot_groups([40] * 5, 80) == [([0, 1, 2, 3, 4], 2)]
    assert slot_groups([40, 10, 10], 120) == [([0, 1, 2], 3)]
    assert slot_groups([500], 80) == [([0], 1)]
    assert slot_groups([], 80) == []


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_windows_in_slots_give_the_responses_of_padded_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A long response leaves its slot while shorter ones go on: nothing of it may be seen, or spoil its successor."""
    roles = open_roles(save_model(name, tmp_path))
    roles.add_base("policy")
    found = prompts(40)
    responses = sample(roles, found, 400 // roles.generation_cache_factor(), longest=60)
    assert responses == padded(roles, found, monkeypatch, longest=60)


def test_a_cleared_slot_always_sees_a_column(roles: Roles) -> None:
    """Attention to nothing could be NaN, which would stay in the cache of the slot."""
    held = slots.Slots(roles.model, "past_key_values", 2, 40, fixed=False)
    held.put([0, 1], [tuple(range(5, 25)), (5, 6, 7)])
    held.clear([0])
    assert held.positions.tolist() == [0, 2]
    assert held.step().isfinite().all()
    assert held._mask(3, 2).any(-1).all()
