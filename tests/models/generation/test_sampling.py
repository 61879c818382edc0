"""Generation: greedy output of transformers, noise per row, truncation, stops, and the sampling distribution."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from architectures import RECURRENT, save_model
from engine import ENOUGH, LORA, PAD, STOP, disturb, language, open_roles, sequences
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from alignment_core.errors import ModelError, TrainingError
from alignment_core.models.generation.choice import Sampling, choose, tokens_on_host
from alignment_core.models.generation.decoding import Decoding
from alignment_core.models.generation.sampling import generate, padded_groups
from alignment_core.models.generation.slots import Slots
from alignment_core.models.roles.logps import Budget
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import TokenSequence
from alignment_core.progress import Stopped
from alignment_core.seeds import seed_of


@pytest.fixture(scope="module")
def roles(tiny_model: Path) -> Roles:
    roles = open_roles(tiny_model)
    roles.add_new("policy", LORA, 0)
    disturb(roles, "policy", 3)
    return roles


def prompts(count: int, seed: int = 0) -> list[TokenSequence]:
    return [TokenSequence(sequence.prompt, sequence.start) for sequence in sequences(count, seed, prompt=20)]


def sample(
    roles: Roles,
    found: list[TokenSequence],
    sampling: Sampling,
    *,
    keys: list[str] | None = None,
    budget: int = ENOUGH,
    stop_ids: tuple[int, ...] = (STOP,),
) -> list[list[int]]:
    """Return only the responses. By default each prompt's tokens are its noise key."""
    results = generate(
        roles,
        "policy",
        found,
        noise_keys=keys or [str(prompt.ids) for prompt in found],
        sampling=sampling,
        stop_ids=stop_ids,
        pad_id=PAD,
        budget=Budget(budget),
        on_step=lambda _: None,
    )
    assert [result.sequence.prompt for result in results] == [prompt.ids for prompt in found]
    return [list(result.sequence.completion) for result in results]


def transformers_greedy(roles: Roles, found: list[TokenSequence], length: int, stop_ids: list[int]) -> list[list[int]]:
    width = max(len(prompt.ids) for prompt in found)
    ids = torch.tensor([[PAD] * (width - len(prompt.ids)) + list(prompt.ids) for prompt in found])
    mask = torch.tensor([[0] * (width - len(prompt.ids)) + [1] * len(prompt.ids) for prompt in found])
    with roles.use("policy"):
        rows = roles.model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=length, pad_token_id=PAD, eos_token_id=stop_ids
        )[:, width:].tolist()
    ends = [next((i + 1 for i, token in enumerate(row) if token in stop_ids), len(row)) for row in rows]
    return [row[:end] for row, end in zip(rows, ends, strict=True)]


@pytest.mark.parametrize("budget", [ENOUGH, 150, 1])
def test_greedy_on_stories_matches_transformers(stories260k: Path, budget: int) -> None:
    """Use a real model, prompts of unequal length, and a period as a stop id, so that rows end at different steps."""
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    texts = [
        "Once upon a time",
        "One day, Tom and his mother went to the park to",
        "The",
        "Lily had a big red ball. She liked",
        "It was dark. The dog",
    ]
    found = [TokenSequence(tuple(ids := tokenizer.encode(text)), len(ids)) for text in texts]
    stops = [1, 2, tokenizer.encode("a.")[-1]]
    roles = open_roles(stories260k)
    roles.add_base("policy")
    ours = sample(roles, found, Sampling(60, temperature=0), budget=budget, stop_ids=tuple(stops))
    assert ours == transformers_greedy(roles, found, 60, stops)
    assert len({len(response) for response in ours}) > 2


@pytest.mark.parametrize("name", [*RECURRENT, "mistral", "gemma2", "recurrent gemma"])
def test_greedy_matches_transformers_for_every_kind_of_state(tmp_path: Path, name: str) -> None:
    """Cover layers of each kind of cache. The first row stops by its fourth token and leaves the batch."""
    roles = open_roles(save_model(name, tmp_path))
    roles.add_base("policy")
    found = [TokenSequence(ids, len(ids)) for ids in (tuple(range(5, 13)), (20, 21, 22), tuple(range(30, 45)))]
    # Run transformers on one prompt at a time, because its padding is not under test.
    stops = [transformers_greedy(roles, found[:1], 4, [])[0][3]]
    expected = [transformers_greedy(roles, [one], 12, stops)[0] for one in found]
    assert sample(roles, found, Sampling(12, temperature=0), stop_ids=tuple(stops)) == expected
    assert len(expected[0]) <= 4


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), budget=st.sampled_from([1, 60, 130, ENOUGH]), temperature=st.sampled_from([0.5, 1.0, 3.0]))
def test_sample_of_a_row_does_not_depend_on_other_rows(
    roles: Roles, data: st.DataObject, budget: int, temperature: float
) -> None:
    found = prompts(6)
    chosen = data.draw(st.permutations(found).flatmap(lambda order: st.integers(1, 6).map(lambda n: order[:n])))
    sampling = Sampling(12, temperature=temperature)
    # Several likely tokens are stops, so rows leave the batch at different steps.
    stops = tuple(range(2, 40))
    everything = dict(
        zip([prompt.ids for prompt in found], sample(roles, found, sampling, stop_ids=stops), strict=True)
    )
    part = sample(roles, chosen, sampling, budget=budget, stop_ids=stops)
    assert part == [everything[prompt.ids] for prompt in chosen]


def test_noise_depends_on_the_key(roles: Roles) -> None:
    found, sampling = prompts(1) * 3, Sampling(20, temperature=3.0)
    same = sample(roles, found, sampling, keys=["a", "a", "a"])
    other = sample(roles, found, sampling, keys=["a", "b", "c"])
    assert same[0] == same[1] == same[2] == other[0]
    assert other[0] != other[1] != other[2]


def test_a_longer_limit_continues_the_same_response(roles: Roles) -> None:
    found = prompts(4)
    short = sample(roles, found, Sampling(5, temperature=2.0), stop_ids=())
    long = sample(roles, found, Sampling(15, temperature=2.0), stop_ids=())
    assert [response[:5] for response in long] == short
    assert all(len(response) == 15 for response in long)


def test_a_response_ends_with_the_first_stop(roles: Roles) -> None:
    stops = set(range(2, 130))
    responses = sample(roles, prompts(8), Sampling(30, temperature=2.0), stop_ids=tuple(stops))
    for response in responses:
        assert not stops & set(response[:-1])
    assert any(response[-1] in stops for response in responses)
    assert sample(roles, prompts(2), Sampling(1, temperature=2.0), stop_ids=()) == [
        response[:1] for response in sample(roles, prompts(2), Sampling(3, temperature=2.0), stop_ids=())
    ]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_tokens_match_the_distribution_of_a_fresh_forward(roles: Roles, temperature: float) -> None:
    """Each token's interval of the cumulative distribution, computed without cache or padding, contains its uniform."""
    found = prompts(5)
    responses = sample(roles, found, Sampling(10, temperature), keys=[f"k{i}" for i in range(5)], stop_ids=())
    for i, (prompt, response) in enumerate(zip(found, responses, strict=True)):
        uniforms = torch.rand(10, generator=torch.Generator().manual_seed(seed_of(f"k{i}")), dtype=torch.float64)
        ids = torch.tensor([[*prompt.ids, *response]])
        with roles.use("policy"), torch.no_grad():
            logits = roles.model(ids).logits[0, len(prompt.ids) - 1 : -1].double() / temperature
        cumulative = torch.softmax(logits, -1).cumsum(-1)
        for t, token in enumerate(response):
            below = cumulative[t, token - 1].item() if token else 0.0
            assert below - 1e-5 <= uniforms[t].item() <= cumulative[t, token].item() + 1e-5
        sequence = TokenSequence((*prompt.ids, *response), len(prompt.ids))
        with torch.no_grad():
            logps = language(roles, "policy").token_logps([sequence], temperature).logps[0]
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(response)[:, None])[:, 0]
        torch.testing.assert_close(logps.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1),
        Sampling(1, temperature=0.5),
        Sampling(1, top_k=3),
        Sampling(1, top_p=0.7),
        Sampling(1, temperature=1.7, top_p=0.9, top_k=5),
        Sampling(1, top_k=1000),
    ],
    ids=str,
)
def test_shares_match_transformers_warpers(sampling: Sampling) -> None:
    """Evenly spaced uniforms in [0, 1) choose each token as often as the warped distribution predicts, within one."""
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(0)) * 2
    warped = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        warped = TopKLogitsWarper(sampling.top_k)(None, warped)
    if sampling.top_p < 1:
        warped = TopPLogitsWarper(sampling.top_p)(None, warped)
    expected = torch.softmax(warped[0].double(), -1)
    count = 20_000
    uniforms = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens = choose(logits.expand(count, -1), uniforms, sampling)
    shares = torch.bincount(tokens, minlength=30).double() / count
    torch.testing.assert_close(shares, expected, rtol=0, atol=1.5 / count)
    assert not shares[expected == 0].any()


def test_ends_of_the_unit_interval_choose_possible_tokens() -> None:
    logits = torch.tensor([[-200.0, 1.0, 0.0, -200.0]])
    first = choose(logits, torch.tensor([0.0], dtype=torch.float64), Sampling(1, top_k=2))
    last = choose(logits, torch.tensor([1 - 2**-53], dtype=torch.float64), Sampling(1, top_k=2))
    assert (first.item(), last.item()) == (1, 2)
    assert choose(logits, torch.tensor([0.99], dtype=torch.float64), Sampling(1, temperature=0)).item() == 1


def test_nan_logits_are_an_error() -> None:
    """A row of a slot that holds nothing is not looked at."""
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, float("nan"), 1.0]])
    for temperature in (0.0, 1.0):
        tokens = choose(logits, torch.tensor([0.99, 0.5], dtype=torch.float64), Sampling(1, temperature))
        assert tokens_on_host(tokens, [0]) == [2]
        with pytest.raises(ModelError, match="contain NaN"):
            tokens_on_host(tokens, [0, 1])


def test_generation_can_be_stopped_at_each_token(roles: Roles) -> None:
    """Two responses are sampled together, each of them a fiftieth longer at each step."""
    done: list[float] = []

    def on_step(finished: float) -> None:
        done.append(finished)
        if len(done) == 4:
            raise Stopped

    found = prompts(2)
    with pytest.raises(Stopped):
        generate(
            roles,
            "policy",
            found,
            noise_keys=["a", "b"],
            sampling=Sampling(50),
            stop_ids=(),
            pad_id=PAD,
            budget=Budget(ENOUGH),
            on_step=on_step,
        )
    assert done == pytest.approx([0, 2 / 50, 4 / 50, 6 / 50])


def test_out_of_memory_keeps_finished_responses(roles: Roles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory ends at the fourth token of the prompts that came second. Only their first three tokens are lost."""
    found, sampling = prompts(6), Sampling(8, temperature=2.0)
    expected = sample(roles, found, sampling, stop_ids=())
    budget, steps, reported = Budget(130), list[int](), list[int]()
    step = Slots.step

    def failing(self: Slots) -> torch.Tensor:
        steps.append(len(self.ids))
        if len(steps) == 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self)

    monkeypatch.setattr(Slots, "step", failing)
    results = generate(
        roles,
        "policy",
        found,
        noise_keys=[str(prompt.ids) for prompt in found],
        sampling=sampling,
        stop_ids=(),
        pad_id=PAD,
        budget=budget,
        on_step=lambda _: None,
        on_token=lambda row, _: reported.append(row),
    )
    assert [list(result.sequence.completion) for result in results] == expected
    assert budget.tokens == 65
    again = len(found) - steps[0]
    # The row that came second takes the place of a finished one. Places that stay free go with the next step.
    assert steps[:12] == [steps[0]] * 9 + [again] * 3
    assert sorted(Counter(reported).values()) == [8] * steps[0] + [11] * again


def test_out_of_memory_at_the_smallest_budget_is_an_error(roles: Roles, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: object, **kwargs: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(roles.model, "forward", failing)
    with pytest.raises(TrainingError, match="smallest token budget"):
        sample(roles, prompts(2), Sampling(3), budget=500)


def test_trained_policy_is_sampled_in_larger_batches(tmp_path: Path) -> None:
    """A token in the cache takes less memory than one held for backward. The responses are the same."""
    roles = open_roles(save_model("llama", tmp_path, num_hidden_layers=6))
    roles.add_new("policy", LORA, 0)
    disturb(roles, "policy", 3)
    passes: list[int] = []
    hook = roles.model.register_forward_pre_hook(
        lambda *given: passes.append(given[2]["input_ids"].shape[1]), with_kwargs=True
    )
    found = prompts(24)

    def first_passes() -> int:
        count = sum(width > 1 for width in passes)
        passes.clear()
        return count

    alone = sample(roles, found, Sampling(4), budget=64)
    before, few = first_passes(), roles.generation_cache_factor()
    roles.train_only(["policy"])
    assert sample(roles, found, Sampling(4), budget=64) == alone
    many = roles.generation_cache_factor()
    assert many >= 4
    assert first_passes() <= before * few / many + 1 < before
    roles.checkpoint_layers(True)
    assert roles.generation_cache_factor() == few
    hook.remove()


def test_bf16_head_is_not_copied_for_each_row(tmp_path: Path) -> None:
    """A row's last state is a non-contiguous slice, for which torch's CPU matmul would copy the head per row."""
    roles = open_roles(save_model("llama", tmp_path), "bf16")
    roles.add_new("policy", LORA, 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        sample(roles, prompts(5), Sampling(3))
    copied = [event.input_shapes[0] for event in profile.events() if event.name == "aten::copy_"]
    vocabulary = roles.model.config.vocab_size
    assert copied
    assert [shape for shape in copied if vocabulary in shape and len(shape) == 3 and shape[0] == 5] == []


def test_rows_without_slots_share_batches_of_equal_length() -> None:
    lengths = [30, 30, 30, 20, 20, 10]
    assert padded_groups(lengths, 90, Decoding()) == [[0, 1, 2], [3, 4, 5]]
    equal = Decoding(together=False)
    assert padded_groups(lengths, 60, equal) == [[0, 1], [2], [3, 4], [5]]
    assert padded_groups(lengths, 5, equal) == [[0], [1], [2], [3], [4], [5]]
    assert padded_groups(lengths, 60, Decoding(together=False, equal=False)) == [[i] for i in range(6)]
