"""KTO as a plugin: both classes in each step, one reference point per step, balancing weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from runs import feedback_rows
from scripted import Model, ScriptedRun, Table, micro

from alignment_core.errors import DataError
from alignment_core.models.passes.batching import group_by_budget, row_sequences
from alignment_core.plugin_api import Row, TokenSequence
from alignment_plugins.kto import KTO


def flat(rows: list[Row], name: str, nats: list[float]) -> dict[tuple[int, ...], list[float]]:
    """Return a table in which each row's sequence `name` has the given sum of log-probabilities."""
    table = {}
    for row, total in zip(rows, nats, strict=True):
        sequence = row.sequences[name]
        table[sequence.ids] = [total] + [0.0] * (len(sequence.completion) - 1)
    return table


def run_of(rows: list[Row], policy: Table) -> ScriptedRun:
    """Return a run whose reference gives 0 nats to everything, so that the policy's numbers are the log-ratios."""
    zeros = {ids: [0.0] * len(values) for ids, values in policy.items()}
    return ScriptedRun(policy=Model(policy), reference=Model(zeros), feedback=rows)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_a_step_by_hand() -> None:
    """Two good rows (log-ratios 2 and -1) and one bad (log-ratio 3); mismatched ratios 1, 4 and -2: z0 = 1.

    beta 0.5; balance: 2·λ_D = 1·λ_U, the larger 1: λ_D = 0.5, λ_U = 1. One micro-batch per row adds up to the step.
    """
    rows = feedback_rows(2, 1)
    policy = flat(rows, "response", [2.0, -1.0, 3.0]) | flat(rows, "mismatched", [1.0, 4.0, -2.0])
    run, objective = run_of(rows, policy), KTO(beta=0.5, batch_size=3)
    (batch,) = objective.batches(run)
    assert batch.constants == {"z0": 1.0, "desirable_weight": 0.5, "undesirable_weight": 1.0}
    expected = (
        0.5 * (1 - sigmoid(0.5 * (2 - 1))) + 0.5 * (1 - sigmoid(0.5 * (-1 - 1))) + 1.0 * (1 - sigmoid(0.5 * (1 - 3)))
    ) / 3
    denominators = {"rows": 3.0, **batch.denominators}
    outputs = [objective.loss(run, micro([row], denominators, batch.constants)) for row in batch.rows]
    assert sum(output.loss.item() for output in outputs) == pytest.approx(expected, rel=1e-5)
    metrics = {name: sum(float(output.metrics[name]) for output in outputs) for name in outputs[0].metrics}
    assert metrics == pytest.approx(
        {
            "reward_margin": 0.25 - 1.5,
            "reward_desirable": 0.5 * (2 - 1) / 2,
            "reward_undesirable": 0.5 * 3,
            "desirable_share": 2 / 3,
            "kl": 1.0,
            "logps": 4 / 3,
            "length": sum(len(row.sequences["response"].completion) for row in rows) / 3,
        }
    )


def test_the_reference_point_is_never_below_0() -> None:
    rows = feedback_rows(1, 1)
    policy = flat(rows, "response", [0.0, 0.0]) | flat(rows, "mismatched", [-3.0, 1.0])
    (batch,) = KTO(batch_size=2).batches(run_of(rows, policy))
    assert batch.constants["z0"] == 0.0


def test_reference_point_is_measured_when_the_step_begins() -> None:
    """The second step's z0 is measured with the weights after the first step."""
    rows = feedback_rows(2, 2)
    policy = flat(rows, "response", [0.0] * 4) | flat(rows, "mismatched", [1.0] * 4)
    run = run_of(rows, policy)
    batches = KTO(batch_size=2).batches(run)
    assert next(batches).constants["z0"] == 1.0
    run.policy = Model(policy | flat(rows, "mismatched", [5.0] * 4))
    assert next(batches).constants["z0"] == 5.0


def test_mismatched_responses_do_not_count_in_micro_batches() -> None:
    """Two responses of 5 tokens fit into a budget of 10, although each has a mismatched response of 50 tokens."""
    rows = []
    for i in range(2):
        response, mismatched = TokenSequence((i, 3, 4, 5, 6), 1), TokenSequence((i, *range(10, 59)), 1)
        both = {"response": response, "mismatched": mismatched}
        rows.append(Row(str(i), both, {"desirable": float(i), "weight": 1.0}))
    policy = flat(rows, "response", [0.0] * 2) | flat(rows, "mismatched", [0.0] * 2)
    (batch,) = KTO(batch_size=2).batches(run_of(rows, policy))
    assert len(group_by_budget(batch.rows, 10, row_sequences)) == 1
    assert sorted(len(row.sequences["response"].ids) for row in batch.rows) == [5, 5]


def test_votes_weight_rows_and_balance() -> None:
    """A good row of 3 votes against a bad one of 1: 3·λ_D = 1·λ_U, so λ_D = 1/3. The good loss counts three times."""
    rows = [*feedback_rows(1, 0, votes=3.0), *feedback_rows(0, 1, seed=1)]
    policy = flat(rows, "response", [0.0, 0.0]) | flat(rows, "mismatched", [0.0, 0.0])
    run, objective = run_of(rows, policy), KTO(batch_size=2)
    (batch,) = objective.batches(run)
    assert batch.constants["desirable_weight"] == pytest.approx(1 / 3)
    output = objective.loss(run, micro(batch.rows, {"rows": 2.0, **batch.denominators}, batch.constants))
    assert output.loss.item() == pytest.approx((3 * (1 / 3) * 0.5 + 1 * 1 * 0.5) / 2)


@given(good=st.integers(1, 40), bad=st.integers(1, 40), given_good=st.none() | st.floats(0.1, 3))
def test_weights_balance_unless_given(good: int, bad: int, given_good: float | None) -> None:
    weights = KTO(desirable_weight=given_good)._weights(good, bad)
    if given_good is not None:
        assert weights["desirable_weight"] == given_good
    else:
        assert good * weights["desirable_weight"] == pytest.approx(bad * weights["undesirable_weight"])
        assert max(weights.values()) == 1.0


@given(good=st.integers(1, 30), bad=st.integers(1, 30), batch_size=st.integers(2, 12), data=st.data())
def test_steps_are_stratified_for_any_order(good: int, bad: int, batch_size: int, data: st.DataObject) -> None:
    """Each epoch has each row once, both classes in every step where possible, and sizes as even as possible."""
    rows = feedback_rows(good, bad)
    zeros = flat(rows, "response", [0.0] * len(rows)) | flat(rows, "mismatched", [0.0] * len(rows))
    run = run_of(data.draw(st.permutations(rows)), zeros)
    objective = KTO(batch_size=batch_size, epochs=2)
    batches = list(objective.batches(run))
    steps = len(batches) // 2
    assert len(batches) == objective.total_steps(run) == 2 * math.ceil((good + bad) / batch_size)
    orders = []
    for epoch in (batches[:steps], batches[steps:]):
        orders.append([row.id for batch in epoch for row in batch.rows])
        assert sorted(orders[-1]) == sorted(row.id for row in rows)
        shares = [sum(row.number("desirable") for row in batch.rows) for batch in epoch]
        assert max(shares) - min(shares) <= 1
        sizes = [len(batch.rows) for batch in epoch]
        assert min(sizes) >= 1
        assert max(sizes) <= batch_size + 1
        one_class = sum(share in (0, size) for share, size in zip(shares, sizes, strict=True))
        assert one_class == max(0, steps - min(good, bad))
        for batch, share, size in zip(epoch, shares, sizes, strict=True):
            assert batch.denominators == {"desirable": max(1, share), "undesirable": max(1, size - share)}
    if one_class:
        assert run.warnings == [
            f"only one class in {one_class} of {steps} steps per epoch, because the smaller class has too few rows"
        ]
        assert run.state["one_class_steps"] == one_class
    else:
        assert run.warnings == []
    if min(good, bad) > 8:
        assert orders[0] != orders[1]
    run.step = data.draw(st.integers(0, len(batches)))
    again = [[row.id for row in batch.rows] for batch in objective.batches(run)]
    assert again == [[row.id for row in batch.rows] for batch in batches[run.step :]]


@pytest.mark.parametrize(("good", "bad"), [(4, 0), (0, 4), (0, 0)])
def test_single_class_is_refused(good: int, bad: int) -> None:
    with pytest.raises(DataError, match="both desirable and undesirable") as error:
        next(KTO().batches(ScriptedRun(feedback=feedback_rows(good, bad))))
    assert error.value.got == f"{good} desirable and {bad} undesirable"


def test_a_step_of_one_row_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        KTO(batch_size=1)


class Free:
    """A policy whose log-probability of each sequence is a parameter."""

    def __init__(self, rows: list[Row]) -> None:
        self.of = {row.sequences["response"]: torch.zeros((), requires_grad=True) for row in rows}

    def logps(self, found: list[TokenSequence]) -> torch.Tensor:
        return torch.stack([self.of[sequence] for sequence in found])


@given(
    thumbs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(any), min_size=1, max_size=5),
    z0=st.floats(0, 3),
    good=st.floats(0.1, 2),
    bad=st.floats(0.1, 2),
)
def test_at_a_fixed_z0_each_response_moves_with_its_likes(
    thumbs: list[tuple[int, int]], z0: float, good: float, bad: float
) -> None:
    """If a share p of n labels is good, the log-ratio grows if p·λ_D > (1 - p)·λ_U, and falls if it is less.

    Both losses have the slope β·σ'(β(r - z0)) in r. At the reference, the negative gradient is that slope times n/N
    times p·λ_D - (1 - p)·λ_U.
    """
    responses = feedback_rows(len(thumbs), 0)
    rows = [
        Row(f"{row.id}-{i}", row.sequences, {"desirable": float(i < up), "weight": 1.0})
        for row, (up, down) in zip(responses, thumbs, strict=True)
        for i in range(up + down)
    ]
    policy = Free(responses)
    reference = flat(responses, "response", [0.0] * len(responses))
    run = ScriptedRun(policy=policy, reference=Model(reference))  # type: ignore[arg-type]
    constants = {"z0": z0, "desirable_weight": good, "undesirable_weight": bad}
    denominators = {"rows": float(len(rows)), "desirable": 1.0, "undesirable": 1.0}
    KTO(beta=0.5).loss(run, micro(rows, denominators, constants)).loss.backward()
    slope = 0.5 * sigmoid(-0.5 * z0) * sigmoid(0.5 * z0)
    for row, (up, down) in zip(responses, thumbs, strict=True):
        gradient = policy.of[row.sequences["response"]].grad
        assert gradient is not None
        assert -gradient.item() == pytest.approx(slope * (up * good - down * bad) / len(rows), rel=1e-4, abs=1e-7)


def test_advice_if_both_rewards_fall() -> None:
    (one,) = KTO().advice({"reward_desirable": -0.6, "reward_undesirable": -1.5}, {})
    assert one.finding == "Both rewards fell: `reward_desirable` to -0.60, `reward_undesirable` to -1.50"
    assert KTO().advice({"reward_desirable": 0.1, "reward_undesirable": -1.5}, {}) == []
