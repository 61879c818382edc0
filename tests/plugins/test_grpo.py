"""GRPO as a plugin: advantages, groups that are left out, and the loss in each of its forms, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from grouped import CUT, GROUPS, LONG, OTHER, SHORT, Refilled, grouped_run
from pydantic import ValidationError
from scripted import Model, ScriptedRun, micro

from alignment_core.plugin_api import Needs, Row, TokenSequence
from alignment_plugins.grpo import GRPO

PLAIN = GROUPS | {"missing_end_penalty": 0.0}


def advantages(scores: tuple[float, float, float, float], **settings: Any) -> dict[TokenSequence, float]:
    """Return the advantages of the responses that are learned from."""
    run = grouped_run(scores)
    return {
        row.sequences["response"]: row.number("advantage")
        for batch in GRPO(**PLAIN | settings).batches(run)
        for row in batch.rows
    }


def test_advantages_by_hand() -> None:
    """Group means 3 and 2. Two rewards that differ by d have the sample deviation d/√2."""
    found = advantages((4.0, 2.0, 1.0, 3.0))
    half = math.sqrt(0.5)
    assert found == pytest.approx({SHORT: half, LONG: -half, OTHER: -half, CUT: half}, rel=1e-3)
    found = advantages((4.0, 2.0, 1.0, 3.0), divide_by_deviation=False)
    assert found == {SHORT: 1.0, LONG: -1.0, OTHER: -1.0, CUT: 1.0}


def test_kl_in_the_reward_by_hand() -> None:
    """KL 0, 1 and 1, -1 with beta 0.5: rewards 4, 1.5 and 0.5, 3.5."""
    found = advantages((4.0, 2.0, 1.0, 3.0), kl_in="reward", kl_coef=0.5, divide_by_deviation=False)
    assert found == {SHORT: 1.25, LONG: -1.25, OTHER: -1.5, CUT: 1.5}


def test_groups_of_equal_reward_are_left_out_and_counted() -> None:
    run = grouped_run((4.0, 2.0, 3.0, 3.0))
    (batch,) = GRPO(**PLAIN).batches(run)
    assert {row.sequences["response"] for row in batch.rows} == {SHORT, LONG}
    assert batch.denominators == {"tokens": 5}
    assert {name: run.reports[0][name] for name in ("equal_groups", "left_out")} == {"equal_groups": 1, "left_out": 2}
    assert run.reports[0]["group_deviation"] == pytest.approx(math.sqrt(2) / 2)
    found = advantages((4.0, 2.0, 3.0, 3.0), dynamic_sampling=False)
    assert (len(found), found[OTHER], found[CUT]) == (4, 0.0, 0.0)
    assert advantages((1.0, 1.0, 1.0, 1.0)) == {}


def refilled(later: list[tuple[TokenSequence, TokenSequence]], **settings: Any) -> tuple[Refilled, set[TokenSequence]]:
    """Return the run of one rollout, in which OTHER and CUT have equal rewards, and what is learned from."""
    run = Refilled.of((4.0, 2.0, 3.0, 3.0), later)
    batches = list(GRPO(**PLAIN, **settings).batches(run))
    return run, {row.sequences["response"] for batch in batches for row in batch.rows}


def test_groups_that_are_left_out_are_replaced_by_new_ones() -> None:
    run, rows = refilled([(SHORT, SHORT), (LONG, OTHER), (SHORT, LONG)], refills=5)
    assert rows == {SHORT, LONG, OTHER}, "the first group, and after one more of equal rewards that of LONG and OTHER"
    asked = [names for names, _ in run.asked_to_generate]
    assert [len(names) for names in asked] == [2, 1, 1]
    assert [names[0].split(" ", 1)[1] for names in asked[1:]] == ["0/1", "0/2"], "noise of its own"
    found = {name: run.reports[0][name] for name in ("equal_groups", "refilled_groups", "left_out", "score")}
    assert found == {"equal_groups": 2, "refilled_groups": 2, "left_out": 4, "score": pytest.approx(25 / 8)}
    assert run.state["next_prompt"] == 4


def test_refills_are_bounded() -> None:
    run, rows = refilled([(SHORT, SHORT)] * 9, refills=2)
    assert rows == {SHORT, LONG}
    assert [run.reports[0][name] for name in ("equal_groups", "refilled_groups")] == [3, 2]
    with pytest.raises(ValidationError, match="dynamic_sampling leaves out, but that is off"):
        GRPO(refills=1, dynamic_sampling=False)


def test_unfinished_responses_count_in_their_group_but_are_not_learned_from() -> None:
    found = advantages((4.0, 2.0, 1.0, 3.0), learn_from_unfinished=False, divide_by_deviation=False)
    assert found == {SHORT: 1.0, LONG: -1.0, OTHER: -1.0}


@pytest.mark.parametrize(("kl_in", "kl_coef"), [("reward", 0.5), ("loss", 0.0)])
def test_reference_is_kept_only_for_the_kl_in_the_loss(kl_in: Any, kl_coef: float) -> None:
    (batch,) = GRPO(**PLAIN, kl_in=kl_in, kl_coef=kl_coef).batches(grouped_run((4.0, 2.0, 1.0, 3.0)))
    assert set(batch.rows[0].values) == {"advantage", "old_logps"}


def test_without_kl_the_reference_is_not_needed_nor_used() -> None:
    objective = GRPO(**PLAIN, kl_coef=0.0)
    assert objective.needs() == Needs(prompts=True, reward=True)
    run = grouped_run((4.0, 2.0, 1.0, 3.0))
    run.reference = Model({})
    short, _, other, _ = run.rollouts
    run.held_out_rollouts = [
        replace(rollout, prompt=Row(f"held-out-{rollout.prompt.id}", rollout.prompt.sequences))
        for rollout in (short, other)
    ]
    for _ in objective.batches(run):
        run.step += 1
    reported = {name for report in run.reports for name in report}
    assert "held_out_score" in reported
    assert not {"kl", "held_out_kl"} & reported
    assert run.kept_at[0] == 0


def step() -> tuple[ScriptedRun, list[Row]]:
    """Return responses of two tokens and of one, with log-ratios 0.1, -1 and 0.5 to the sampling policy."""
    two, one = TokenSequence((5, 6, 2), 1), TokenSequence((7, 2), 1)
    run = ScriptedRun(policy=Model({two.ids: [-1.0, -2.0], one.ids: [-0.5]}, entropy=0.7))
    first = {"advantage": 2.0, "old_logps": [-1.1, -1.0], "reference_logps": [-0.5, -2.0]}
    second = {"advantage": -1.0, "old_logps": [-1.0], "reference_logps": [-1.5]}
    return run, [Row("0", {"response": two}, first), Row("1", {"response": one}, second)]


TOKENS = (-2 * math.exp(0.1), -2 * math.exp(-1.0), math.exp(0.5))
"""Policy loss of the three tokens: none is clipped, since ratios below 1 with A > 0 and above 1 with A < 0 are not."""
KL = (math.exp(0.5) - 1.5, 0.0, math.exp(-1.0))


@pytest.mark.parametrize(
    ("loss_mean", "weights"),
    [
        ("token", (1 / 3, 1 / 3, 1 / 3)),
        ("sequence", (1 / 4, 1 / 4, 1 / 2)),
        ("constant", (1 / 20, 1 / 20, 1 / 20)),  # two responses, max_new_tokens 10
    ],
)
def test_the_loss_by_hand(loss_mean: Any, weights: tuple[float, float, float]) -> None:
    run, rows = step()
    objective = GRPO(loss_mean=loss_mean, kl_coef=0.3, max_new_tokens=10)
    output = objective.loss(run, micro(rows, {"tokens": 3.0, "rows": 2.0}))
    policy = sum(w * x for w, x in zip(weights, TOKENS, strict=True))
    kl = sum(w * x for w, x in zip(weights, KL, strict=True))
    assert output.loss.item() == pytest.approx(policy + 0.3 * kl, rel=1e-5)
    moved = math.exp(0.1) - 1.1 + math.exp(-1.0) + math.exp(0.5) - 1.5
    assert {name: float(value) for name, value in output.metrics.items()} == pytest.approx(
        {
            "policy_loss": policy, "kl_loss": kl, "policy_clipped_share": 0.0, "step_kl": moved / 3, "entropy": 0.7,
        },
        rel=1e-4,
    )  # fmt: skip


def test_clip_higher_by_hand() -> None:
    """The ratio e^0.1 = 1.105 of the first token, with A = 2, counts as 1.05; with `clip_high` 0.2 as it is."""
    run, rows = step()

    def loss(**settings: Any) -> float:
        output = GRPO(kl_coef=0.0, clip=0.05, **settings).loss(run, micro(rows[:1], {"tokens": 2.0, "rows": 1.0}))
        return output.loss.item()

    assert loss() == pytest.approx((-2 * 1.05 + TOKENS[1]) / 2)
    assert loss(clip_high=0.2) == pytest.approx((TOKENS[0] + TOKENS[1]) / 2)
