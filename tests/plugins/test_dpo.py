"""DPO as a plugin: the arithmetic of its variants on handwritten log-probabilities."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import preference_rows
from scripted import Model, ScriptedRun, micro

from alignment_core.plugin_api import Row, TokenSequence
from alignment_plugins.dpo import DPO

# One prompt token, a chosen completion of two tokens, and a rejected one of four.
CHOSEN, REJECTED = TokenSequence((5, 6, 7), 1), TokenSequence((5, 8, 9, 10, 11), 1)
ROW = Row("pair", {"chosen": CHOSEN, "rejected": REJECTED}, {"margin": 3.0})
RUN = ScriptedRun(
    # Sums -10 and -12 against -11 and -11.5: log-ratios 1 and -0.5.
    policy=Model({CHOSEN.ids: [-4.0, -6.0], REJECTED.ids: [-3.0, -3.0, -3.0, -3.0]}),
    reference=Model({CHOSEN.ids: [-5.0, -6.0], REJECTED.ids: [-3.0, -3.0, -3.0, -2.5]}),
)


nats = st.floats(-50, 0, width=32)


def minus_log_sigmoid(x: float) -> float:
    return math.log(1 + math.exp(-x))


def loss(settings: dict[str, Any], denominators: dict[str, float] | None = None) -> tuple[float, dict[str, float]]:
    output = DPO(**settings).loss(RUN, micro([ROW], denominators or {"rows": 1, "chosen_tokens": 2}))
    return output.loss.item(), {name: float(value) for name, value in output.metrics.items()}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # u = 0.1 * (1 + 0.5)
        ({}, minus_log_sigmoid(0.15)),
        ({"beta": 0.5}, minus_log_sigmoid(0.75)),
        ({"label_smoothing": 0.2}, 0.8 * minus_log_sigmoid(0.15) + 0.2 * minus_log_sigmoid(-0.15)),
        # The margin of 3 score points, times 0.05, is 0.15.
        ({"margin_scale": 0.05}, math.log(2)),
        # 1/2 + 0.5/4 = 0.625
        ({"length_normalised": True}, minus_log_sigmoid(0.0625)),
        # The chosen completion has 10 nats over 2 tokens.
        ({"sft_weight": 0.3}, minus_log_sigmoid(0.15) + 0.3 * 5),
    ],
    ids=str,
)
def test_variants_by_hand(settings: dict[str, Any], expected: float) -> None:
    assert loss(settings)[0] == pytest.approx(expected, rel=1e-5)


def test_length_counts_only_targets() -> None:
    """A half-masked completion counts half its length."""
    masked = TokenSequence(REJECTED.ids, 1, (True, True, False, False))
    row = Row("pair", {"chosen": CHOSEN, "rejected": masked}, {"margin": 0.0})
    output = DPO(length_normalised=True).loss(RUN, micro([row], {"rows": 1, "chosen_tokens": 2}))
    # 1/2 + 0.5/2 = 0.75 (the scripted log-probabilities ignore the mask).
    assert output.loss.item() == pytest.approx(minus_log_sigmoid(0.075), rel=1e-5)


def test_metrics_by_hand() -> None:
    _, metrics = loss({"beta": 0.2})
    assert metrics == pytest.approx(
        {
            "accuracy": 1.0,
            "reward_chosen": 0.2,
            "reward_rejected": -0.1,
            "reward_margin": 0.3,
            "logps_chosen": -10.0,
            "logps_rejected": -12.0,
            "length_chosen": 2.0,
            "length_rejected": 4.0,
        }
    )


def test_micro_batch_contributes_its_share_of_the_step() -> None:
    whole, metrics = loss({"sft_weight": 0.3})
    part, part_metrics = loss({"sft_weight": 0.3}, {"rows": 4, "chosen_tokens": 8})
    assert part == pytest.approx(whole / 4)
    assert part_metrics == pytest.approx({name: value / 4 for name, value in metrics.items()})


@given(
    policy=st.tuples(nats, nats),
    reference=st.tuples(nats, nats),
    beta=st.floats(0.01, 2),
    length_normalised=st.booleans(),
)
def test_a_swapped_pair_negates_the_margin(
    policy: tuple[float, float], reference: tuple[float, float], beta: float, length_normalised: bool
) -> None:
    run = ScriptedRun(
        policy=Model({CHOSEN.ids: [policy[0], 0.0], REJECTED.ids: [policy[1], 0.0, 0.0, 0.0]}),
        reference=Model({CHOSEN.ids: [reference[0], 0.0], REJECTED.ids: [reference[1], 0.0, 0.0, 0.0]}),
    )
    swapped = Row("swapped", {"chosen": REJECTED, "rejected": CHOSEN}, {"margin": 0.0})
    objective = DPO(beta=beta, length_normalised=length_normalised)
    one, other = (objective.loss(run, micro([row], {"rows": 1, "chosen_tokens": 2})).metrics for row in (ROW, swapped))
    assert float(other["reward_margin"]) == pytest.approx(-float(one["reward_margin"]), abs=1e-4)
    assert float(other["reward_chosen"]) == float(one["reward_rejected"])


@given(count=st.integers(1, 20), batch_size=st.integers(1, 9), epochs=st.integers(1, 3), data=st.data())
def test_each_epoch_uses_each_pair_once_and_can_resume_anywhere(
    count: int, batch_size: int, epochs: int, data: st.DataObject
) -> None:
    run = ScriptedRun(preferences=preference_rows(count))
    objective = DPO(batch_size=batch_size, epochs=epochs)
    batches = [[row.id for row in batch.rows] for batch in objective.batches(run)]
    assert len(batches) == objective.total_steps(run)
    per_epoch = len(batches) // epochs
    for epoch in range(epochs):
        seen = [row for batch in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for row in batch]
        assert sorted(seen) == sorted(row.id for row in run.preferences)
    assert all(len(batch) <= batch_size for batch in batches)
    run.step = data.draw(st.integers(0, len(batches)))
    assert [[row.id for row in batch.rows] for batch in objective.batches(run)] == batches[run.step :]


def test_the_denominator_counts_the_chosen_targets_of_the_step() -> None:
    run = ScriptedRun(preferences=preference_rows(6))
    for batch in DPO(batch_size=4).batches(run):
        assert batch.denominators["chosen_tokens"] == sum(row.sequences["chosen"].targets for row in batch.rows)


def test_policy_equal_to_the_reference_has_loss_ln_2() -> None:
    run = ScriptedRun(policy=RUN.reference, reference=RUN.reference)
    assert DPO().loss(run, micro([ROW], {"rows": 1, "chosen_tokens": 2})).loss == torch.tensor(math.log(2))


@pytest.mark.parametrize(
    ("chosen", "rejected", "rules"),
    [
        (-0.6, -1.5, ["both-rewards-fall"]),  # fell by 0.6, which is more than half of 0.9
        (-0.4, -1.5, []),  # fell by 0.4, and the two are 1.1 apart
        (-0.09, -0.1, []),
        (0.2, -3.0, []),
    ],
)
def test_advice_if_both_rewards_fall(chosen: float, rejected: float, rules: list[str]) -> None:
    trained = {"reward_chosen": chosen, "reward_rejected": rejected, "accuracy": 0.9}
    assert [one.rule for one in DPO().advice(trained, {})] == rules


def test_advice_if_the_pairs_are_memorized() -> None:
    assert DPO().advice({"accuracy": 0.9}, {"implicit_reward_accuracy": 0.71}) == []
    (one,) = DPO().advice({"accuracy": 0.9}, {"implicit_reward_accuracy": 0.69})
    assert (one.rule, one.finding) == (
        "pairs-memorized", "`accuracy` is 90 % on the training pairs, and 69 % on held-out pairs",
    )  # fmt: skip
