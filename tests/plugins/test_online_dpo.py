"""Online DPO as a plugin: which responses become pairs, and the loss by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from grouped import CUT, GROUPS, LONG, OTHER, SHORT, Refilled, grouped_run
from scripted import Model, ScriptedRun, micro

from alignment_core.plugin_api import Needs, Row, TokenSequence
from alignment_plugins.online_dpo import OnlineDPO

PLAIN = GROUPS | {"missing_end_penalty": 0.0}


def test_best_and_worst_become_a_pair() -> None:
    run = grouped_run((4.0, 2.0, 1.0, 3.0))
    (batch,) = OnlineDPO(**PLAIN).batches(run)
    pairs = {(row.sequences["chosen"], row.sequences["rejected"]): dict(row.values) for row in batch.rows}
    assert pairs == {
        (SHORT, LONG): {
            "chosen_old_logps": [-1.0, -2.0], "chosen_reference": -3.0,
            "rejected_old_logps": [-1.0, -1.0, -1.0], "rejected_reference": -4.0,
        },
        (CUT, OTHER): {
            "chosen_old_logps": [-2.0, -1.0, -1.0], "chosen_reference": -3.0,
            "rejected_old_logps": [-0.5, -0.5], "rejected_reference": -2.0,
        },
    }  # fmt: skip
    assert batch.denominators == {"tokens": 10}
    assert (run.reports[0]["equal_groups"], run.reports[0]["score_gap"]) == (0, 2.0)


def test_only_the_extremes_of_a_larger_group_are_learned_from() -> None:
    run = grouped_run((2.0, 4.0, 1.0, 3.0))
    (batch,) = OnlineDPO(**PLAIN | {"samples": 4}).batches(run)
    (row,) = batch.rows
    assert (row.sequences["chosen"], row.sequences["rejected"]) == (LONG, OTHER)


def test_equal_rewards_make_no_pair() -> None:
    run = grouped_run((4.0, 2.0, 3.0, 3.0))
    (batch,) = OnlineDPO(**PLAIN).batches(run)
    assert [row.sequences["chosen"] for row in batch.rows] == [SHORT]
    assert (run.reports[0]["equal_groups"], run.reports[0]["score_gap"]) == (1, 1.0)


def test_prompts_with_equal_rewards_can_be_replaced() -> None:
    run = Refilled.of((4.0, 2.0, 3.0, 3.0), [(LONG, OTHER)])
    (batch,) = OnlineDPO(**PLAIN, refills=1).batches(run)
    assert {row.sequences["chosen"] for row in batch.rows} == {SHORT, OTHER}
    assert [run.reports[0][name] for name in ("equal_groups", "refilled_groups")] == [1, 1]


JUDGE = {"judge": {"name": "longer"}}


def test_a_judge_needs_no_reward() -> None:
    assert OnlineDPO(**JUDGE).needs() == Needs(prompts=True, reference=True)
    assert OnlineDPO().needs() == Needs(prompts=True, reward=True, reference=True)


def test_a_judge_compares_the_responses_to_a_prompt() -> None:
    """It prefers the longer response. The rewards, by which the shorter ones are better, do not count."""
    run = grouped_run((4.0, 2.0, 3.0, 1.0))
    (batch,) = OnlineDPO(**PLAIN, **JUDGE).batches(run)
    pairs = {(row.sequences["chosen"], row.sequences["rejected"]) for row in batch.rows}
    assert pairs == {(LONG, SHORT), (CUT, OTHER)}
    assert (run.reports[0]["score"], run.reports[0]["score_gap"]) == (0.5, 0.5)
    assert "raw_score" not in run.reports[0]


def test_a_judge_rates_by_the_mean_over_the_group() -> None:
    """Lengths 2, 3, 2, 3: a short one ties once and loses twice, (0.5 + 2 · 0.25) / 3, and a long one 1 minus that."""
    objective = OnlineDPO(**PLAIN | {"samples": 4}, **JUDGE)
    run = grouped_run((0.0, 0.0, 0.0, 0.0))
    rates = objective.rate(run, run.rollouts, held_out=False)  # type: ignore[arg-type]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1 / 3, 2 / 3])


def test_held_out_responses_are_compared_with_those_before_training() -> None:
    objective, run = OnlineDPO(**PLAIN, **JUDGE), grouped_run((0.0, 0.0, 0.0, 0.0))
    short, long, *_ = run.rollouts
    first = [short, replace(long, prompt=short.prompt)]
    assert objective.rate(run, first, held_out=True) == [0.5, 0.5]  # type: ignore[arg-type]
    run.state = json.loads(json.dumps(run.state))
    assert objective.rate(run, first[::-1], held_out=True) == [0.75, 0.25]  # type: ignore[arg-type]


def test_total_steps_count_pairs() -> None:
    objective = OnlineDPO(rollout_size=24, samples=4, batch_size=4, rollouts=3, epochs=2)
    assert objective.total_steps(grouped_run((0.0, 0.0, 0.0, 0.0))) == 3 * 2 * 2


def test_messages_name_its_own_setting() -> None:
    """The mean KL of the rollout is 0.25 nats, over a limit of 0.2."""
    run = grouped_run((4.0, 2.0, 1.0, 3.0))
    assert list(OnlineDPO(**PLAIN, kl_ceiling=0.2).batches(run)) == []
    assert "Raise beta, or lower learning_rate" in run.warnings[0]


def test_the_loss_by_hand() -> None:
    """Log-ratios -3 + 3.5 and -0.5 + 0.25 with beta 0.4: u = 0.4 · 0.75. The sides differ in length."""
    two, one = TokenSequence((5, 6, 2), 1), TokenSequence((5, 2), 1)
    run = ScriptedRun(policy=Model({two.ids: [-1.0, -2.0], one.ids: [-0.5]}, entropy=0.7))
    values = {
        "chosen_old_logps": [-1.2, -1.9], "chosen_reference": -3.5,
        "rejected_old_logps": [-1.0], "rejected_reference": -0.25,
    }  # fmt: skip
    row = Row("0", {"chosen": two, "rejected": one}, values)
    output = OnlineDPO(beta=0.4).loss(run, micro([row], {"tokens": 3.0, "rows": 1.0}))
    assert output.loss.item() == pytest.approx(math.log1p(math.exp(-0.3)))
    moved = math.exp(0.2) - 1.2 + math.exp(-0.1) - 0.9 + math.exp(0.5) - 1.5
    assert {name: float(value) for name, value in output.metrics.items()} == pytest.approx(
        {
            "accuracy": 1.0, "reward_chosen": 0.2, "reward_rejected": -0.1, "reward_margin": 0.3,
            "step_kl": moved / 3, "entropy": 0.7,
        },
        rel=1e-4,
    )  # fmt: skip
