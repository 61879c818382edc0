"""Batched log-probabilities, scores and values do not depend on padding, order or token budget, and respect masks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine import ENOUGH, LORA, disturb, language, naive_token_logps, open_roles, scalar, sequences
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignment_core.errors import PluginError, TrainingError
from alignment_core.models.passes.batching import group_by_budget, row_sequences
from alignment_core.models.passes.packing import Arrangement
from alignment_core.models.roles.logps import SMALLEST_BUDGET, Budget
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import Row, TokenSequence

few = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def roles(tiny_model: Path) -> Roles:
    roles = open_roles(tiny_model)
    for seed, role in enumerate(("policy", "reward")):
        roles.add_new(role, LORA, seed)
        if role == "reward":
            roles.add_head(role)
        disturb(roles, role, seed)
    roles.train_only(["policy", "reward"])
    return roles


@st.composite
def batches(draw: st.DrawFn) -> list[TokenSequence]:
    found = []
    for _ in range(draw(st.integers(1, 6))):
        ids = tuple(draw(st.lists(st.integers(3, 250), min_size=2, max_size=30)))
        start = draw(st.integers(1, len(ids) - 1))
        mask = draw(st.none() | st.lists(st.booleans(), min_size=len(ids) - start, max_size=len(ids) - start))
        found.append(TokenSequence(ids, start, None if mask is None else tuple(mask)))
    return found


@few
@given(batch=batches(), temperature=st.sampled_from([1.0, 0.7, 1.8]))
def test_token_logps_match_each_sequence_alone(roles: Roles, batch: list[TokenSequence], temperature: float) -> None:
    """Compare with the model's logits, one sequence at a time without padding. Masked tokens are 0 and do not count."""
    ours = language(roles, "policy").token_logps(batch, temperature)
    longest = max(len(sequence.completion) for sequence in batch)
    assert ours.logps.shape == ours.mask.shape == ours.entropy.shape == (len(batch), longest)
    for row, sequence in enumerate(batch):
        length = len(sequence.completion)
        targets = torch.tensor(sequence.mask or [True] * length)
        with roles.use("policy"), torch.no_grad():
            expected = naive_token_logps(roles.model, sequence, temperature).where(targets, 0.0)
        torch.testing.assert_close(ours.logps[row, :length].double(), expected, rtol=1e-5, atol=1e-4)
        assert ours.mask[row].tolist() == [*targets.float().tolist(), *[0.0] * (longest - length)]
        assert not ours.logps[row, length:].any()
        assert not ours.entropy[row][ours.mask[row] == 0].any()
    summed = language(roles, "policy").logps(batch)
    if temperature == 1.0:
        torch.testing.assert_close(summed, ours.logps.sum(dim=1))


@few
@given(batch=batches())
def test_hidden_states_match_each_sequence_alone(roles: Roles, batch: list[TokenSequence]) -> None:
    """Compare with the states that transformers returns for one sequence without padding. Masks do not matter."""
    with torch.no_grad():
        ours = language(roles, "policy").hidden(batch)
    assert ours.shape == (len(batch), max(len(sequence.completion) for sequence in batch), 32)
    for row, sequence in enumerate(batch):
        ids, length = torch.tensor([sequence.ids]), len(sequence.completion)
        with roles.use("policy"), torch.no_grad():
            states = roles.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1][0]
        torch.testing.assert_close(ours[row, :length], states[sequence.start :], rtol=1e-4, atol=1e-4)
        assert not ours[row, length:].any()


@few
@given(batch=batches(), data=st.data(), budget=st.sampled_from([1, 40, 100, ENOUGH]))
def test_order_and_budget_do_not_matter(
    roles: Roles, batch: list[TokenSequence], data: st.DataObject, budget: int
) -> None:
    order = torch.tensor(data.draw(st.permutations(range(len(batch)))))
    shuffled = [batch[i] for i in order]
    measures: list[Callable[[int, list[TokenSequence]], Tensor]] = [
        lambda tokens, some: language(roles, "policy", tokens).token_logps(some).logps,
        lambda tokens, some: language(roles, "policy", tokens).hidden(some),
        lambda tokens, some: scalar(roles, "reward", tokens).scores(some),
        lambda tokens, some: scalar(roles, "reward", tokens).values(some),
    ]
    with torch.no_grad():
        for measure in measures:
            torch.testing.assert_close(measure(budget, shuffled), measure(ENOUGH, batch)[order], rtol=1e-4, atol=1e-4)


def test_mask_excludes_tokens_in_the_middle(roles: Roles) -> None:
    """Two assistant turns with a user turn in between: the sum skips the user turn, which is still context."""
    whole = TokenSequence((9, 8, 30, 31, 32, 33, 34, 35, 36), 2)
    mask = tuple(i < 2 or i >= 4 for i in range(len(whole.completion)))
    masked = TokenSequence(whole.ids, whole.start, mask)
    with torch.no_grad():
        tokens = language(roles, "policy").token_logps([whole]).logps[0]
        found = language(roles, "policy").logps([masked])
    torch.testing.assert_close(found[0], tokens[:2].sum() + tokens[4:].sum())
    assert masked.targets == len(whole.completion) - 2


def test_value_does_not_depend_on_the_next_token(roles: Roles) -> None:
    """The value of a state does not depend on the next token. The score depends on the last token."""
    one, other = TokenSequence((5, 6, 7, 8), 2), TokenSequence((5, 6, 7, 9), 2)
    with torch.no_grad():
        values = scalar(roles, "reward").values([one, other])
        scores = scalar(roles, "reward").scores([one, other])
        prompt_score = scalar(roles, "reward").scores([TokenSequence((5, 6), 2)])
    torch.testing.assert_close(values[0], values[1])
    assert (scores[0] - scores[1]).abs() > 0.01
    torch.testing.assert_close(values[0, 0], prompt_score[0])


def test_gradients_do_not_depend_on_padding(roles: Roles) -> None:
    def gradient(batches: list[list[TokenSequence]]) -> list[Tensor]:
        for parameter in roles.parameters().values():
            parameter.grad = None
        for batch in batches:
            loss = language(roles, "policy").logps(batch).sum() + (scalar(roles, "reward").values(batch) ** 2).sum()
            loss = loss + (language(roles, "policy").hidden(batch) ** 3).sum()
            loss.backward()  # type: ignore[no-untyped-call]
        return [p.grad for p in roles.parameters().values() if p.grad is not None]

    found = sequences(6, seed=2)
    together, apart = gradient([found]), gradient([[sequence] for sequence in found])
    assert len(together) == len(roles.parameters())
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_sequence_without_a_prompt_is_refused(roles: Roles) -> None:
    with pytest.raises(PluginError, match="without a prompt"):
        language(roles, "policy").logps([TokenSequence((5, 6), 1), TokenSequence((5, 6), 0)])


lengths = st.lists(st.integers(1, 60), min_size=0, max_size=30)


@given(lengths=lengths, budget=st.integers(1, 300))
def test_groups_contain_every_item_once_within_the_budget(lengths: list[int], budget: int) -> None:
    items = [TokenSequence((5,) * length, 1) for length in lengths]
    groups = group_by_budget(items, budget, lambda item: (item,))
    assert sorted(index for group in groups for index in group) == list(range(len(items)))
    for group in groups:
        assert group
        assert len(group) * max(lengths[i] for i in group) <= budget or len(group) == 1
    # Similar lengths are grouped: no group begins with an item longer than the last of the previous group.
    flat = [lengths[i] for group in groups for i in group]
    assert flat == sorted(flat, reverse=True)


@given(pairs=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=15), budget=st.integers(1, 300))
def test_a_row_counts_all_its_sequences(pairs: list[tuple[int, int]], budget: int) -> None:
    rows = [
        Row(str(i), {"chosen": TokenSequence((5,) * a, 1), "rejected": TokenSequence((5,) * b, 1)})
        for i, (a, b) in enumerate(pairs)
    ]
    groups = group_by_budget(rows, budget, row_sequences)
    assert sorted(index for group in groups for index in group) == list(range(len(rows)))
    for group in groups:
        assert 2 * len(group) * max(max(pairs[i]) for i in group) <= budget or len(group) == 1


def test_group_is_filled_up_to_the_budget() -> None:
    """Three items of 10 tokens fit into 30. A fourth would make 40."""
    items = [TokenSequence((5,) * 10, 1)] * 7
    assert [len(group) for group in group_by_budget(items, 30, lambda item: (item,))] == [3, 3, 1]


def test_out_of_memory_halves_the_budget_and_changes_nothing(roles: Roles, monkeypatch: pytest.MonkeyPatch) -> None:
    found = sequences(12, seed=5)
    with torch.no_grad():
        expected = language(roles, "policy").logps(found)
    policy, messages, sizes = language(roles, "policy", 512), list[str](), list[int]()
    policy.budget.on_halved = messages.append
    hidden = Roles.hidden

    def limited(self: Roles, role: str, arrangement: Arrangement) -> Tensor:
        if arrangement.ids.numel() > 150:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(arrangement.ids.numel())
        return hidden(self, role, arrangement)

    monkeypatch.setattr(Roles, "hidden", limited)
    with torch.no_grad():
        torch.testing.assert_close(policy.logps(found), expected, rtol=1e-4, atol=1e-4)
    assert policy.budget.tokens == 128
    assert messages == ["out of memory: token_budget is now 256", "out of memory: token_budget is now 128"]
    assert max(sizes) <= 128


def test_out_of_memory_at_the_smallest_budget_is_an_error() -> None:
    budget, attempts = Budget(1000), list[int]()

    def attempt() -> None:
        attempts.append(budget.tokens)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(TrainingError, match="smallest token budget"):
        budget.fit(attempt)
    assert attempts == [1000, 500, 250, 125]
    assert budget.tokens // 2 < SMALLEST_BUDGET


def test_digests_distinguish_sequences() -> None:
    variants = [
        TokenSequence((5, 6, 7), 1),
        TokenSequence((5, 6, 7), 2),
        TokenSequence((5, 7, 6), 1),
        TokenSequence((5, 6, 7), 1, (True, True)),
        TokenSequence((5, 6, 7), 1, (True, False)),
    ]
    assert len({variant.digest() for variant in variants}) == len(variants)
    assert TokenSequence((5, 6, 7), 1).digest() == variants[0].digest()


def test_a_bf16_base_gives_float32_log_probabilities(tiny_model: Path) -> None:
    """Hidden states are bf16, but logits and sums are not rounded to bf16, so differences of 1 in 1000 survive."""
    roles = open_roles(tiny_model, "bf16")
    roles.add_base("policy")
    found = language(roles, "policy").token_logps(sequences(4))
    assert found.logps.dtype == torch.float32
    real = found.logps[found.mask > 0]
    assert (real != real.bfloat16().float()).float().mean() > 0.9
