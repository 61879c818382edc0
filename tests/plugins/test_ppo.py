"""PPO as a plugin: rewards, advantages and KL control on a scripted rollout."""

import math
from typing import Any

import pytest
import torch
from scripted import Model, ScriptedRun, micro

from alignment_core.plugin_api import Rollout, Row, TokenSequence
from alignment_core.training.rewards import Rewards, ValueInUnits
from alignment_plugins.ppo import PPO

# Two prompts of one token, a finished response of two tokens, and an unfinished one of three.
ENDED, CUT = TokenSequence((5, 6, 2), 1), TokenSequence((7, 8, 9, 10), 1)
PROMPTS = [Row(name, {"prompt": TokenSequence((first,), 1)}) for name, first in (("a", 5), ("b", 7))]
SETTINGS: dict[str, Any] = {"rollout_size": 2, "batch_size": 2, "rollouts": 1, "epochs": 1, "kl_coef": 0.5}
AS_THEY_ARE = {"normalise": False}


def scripted(rewards: dict[str, Any] | None = None, **more: Any) -> ScriptedRun:
    """Return a run with KL per token of 1, -1 for one response and 2, 0, 0 for the other: 0 and 2 nats, mean 1."""
    return ScriptedRun(
        policy=Model({ENDED.ids: [-1.0, -2.0], CUT.ids: [-1.0, -1.0, -1.0]}, entropy=0.7),
        reference=Model({ENDED.ids: [-2.0, -1.0], CUT.ids: [-3.0, -1.0, -1.0]}),
        value=Model({ENDED.ids: [0.5, 1.0], CUT.ids: [0.0, 0.0, 1.0]}),
        reward=Model({ENDED.ids: [4.0], CUT.ids: [3.0]}),
        rewarded_by=Rewards(**AS_THEY_ARE | (rewards or {})),
        prompts=PROMPTS,
        rollouts=[Rollout(PROMPTS[0], ENDED, True, ""), Rollout(PROMPTS[1], CUT, False, "")],
        **more,
    )


def values(batch: Any) -> dict[int, dict[str, list[float]]]:
    """Return the rows' values by length of the response."""
    return {len(row.sequences["response"].completion): dict(row.values) for row in batch.rows}


def test_a_rollout_by_hand() -> None:
    """With beta 0.5, gamma 1 and lambda 1, returns are sums of future rewards.

    Ended: rewards -0.5, 0.5 + 4, so returns 4, 4.5 and advantages 3.5, 3.5. Cut: -1, 0, 0 + 3 - 1 (missing end), so
    returns 1, 2, 2 and advantages 1, 2, 1. Mean of the five 2.2, population variance (2·1.3² + 2·1.2² + 0.2²)/5 = 1.26.
    """
    run = scripted()
    (batch,) = PPO(**SETTINGS, gae_lambda=1.0).batches(run)
    found = values(batch)
    assert found[2]["returns"] == pytest.approx([4.0, 4.5])
    assert found[3]["returns"] == pytest.approx([1.0, 2.0, 2.0])
    deviation = math.sqrt(1.26)
    assert found[2]["advantages"] == pytest.approx([1.3 / deviation] * 2, rel=1e-5)
    assert found[3]["advantages"] == pytest.approx([-1.2 / deviation, -0.2 / deviation, -1.2 / deviation], rel=1e-5)
    assert found[2]["old_logps"] == [-1.0, -2.0]
    assert found[3]["old_values"] == [0.0, 0.0, 1.0]
    assert batch.denominators == {"tokens": 5}
    # Errors of the values against the returns: 3.5, 3.5, 1, 2, 1; variance 1.26, that of 4, 4.5, 1, 2, 2: 1.76.
    assert run.reports == [
        pytest.approx(
            {
                "score": 3.0,
                "raw_score": 3.5,
                "kl": 1.0,
                "kl_coef": 0.5,
                "response_length": 2.5,
                "unfinished_share": 0.5,
                "entropy": 0.7,
                "explained_variance": 1 - 1.26 / 1.76,
            },
            rel=1e-5,
        )
    ]


def test_missing_end_penalty_and_clip() -> None:
    """Scores 4 and 3 are clipped to 2, and the penalty is subtracted after that.

    So the last rewards are 0.5 + 2 and 0 + 2 - 2.5.
    """
    run = scripted({"clip": 2.0})
    (batch,) = PPO(**SETTINGS, gae_lambda=1.0, missing_end_penalty=2.5).batches(run)
    assert values(batch)[2]["returns"][-1] == pytest.approx(2.5)
    assert values(batch)[3]["returns"][-1] == pytest.approx(-0.5)
    assert run.reports[0]["score"] == pytest.approx((2.0 - 0.5) / 2)
    assert run.reports[0]["reward_clipped_share"] == 1


def test_scores_are_normalized_by_the_first_rollout() -> None:
    """Scores 4 and 3 have mean 3.5 and deviation 0.5, so they are 1, and -1 minus the penalty of 1.

    Values 0.5, 1 and 0, 0, 1 become (0.5 - 3.5)/0.5 = -6, -5 and -7, -7, -5. Without KL, returns are 1, 1, -2, -2, -2.
    """
    run: Any = scripted({"normalise": True})
    run.value = ValueInUnits(run.value, run.rewarded_by)
    objective = PPO(**SETTINGS | {"kl_coef": 0.0, "rollouts": 2}, gae_lambda=1.0)
    batches = objective.batches(run)
    batch = next(batches)
    assert values(batch)[2]["old_values"] == pytest.approx([-6.0, -5.0])
    assert values(batch)[3]["old_values"] == pytest.approx([-7.0, -7.0, -5.0])
    assert values(batch)[2]["returns"] == pytest.approx([1.0, 1.0])
    assert values(batch)[3]["returns"] == pytest.approx([-2.0, -2.0, -2.0])
    assert run.rewarded_by.units == {"mean": 3.5, "deviation": 0.5, "value_mean": 3.5}
    assert (run.reports[0]["score"], run.reports[0]["raw_score"]) == (-0.5, 3.5)
    output = objective.loss(run, micro(batch.rows, batch.denominators, batch.constants))
    # The values have not changed: half the squared errors 7², 6² and 5², 5², 3², over five tokens.
    assert float(output.metrics["value_loss"]) == pytest.approx((49 + 36 + 25 + 25 + 9) / 2 / 5)
    # Better scores later do not change the units.
    run.reward = Model({ENDED.ids: [8.0], CUT.ids: [8.0]})
    run.step += 1
    assert values(next(batches))[2]["returns"] == pytest.approx([9.0, 9.0])


def test_equal_scores_are_not_normalized() -> None:
    run = scripted({"normalise": True})
    run.reward = Model({ENDED.ids: [2.0], CUT.ids: [2.0]})
    next(PPO(**SETTINGS).batches(run))
    assert run.reports[0]["score"] == pytest.approx((2 + 1) / 2)


def test_the_loss_by_hand() -> None:
    """One response of two tokens; clip 0.2, value clip 0.2, value weight 0.5, five tokens in the step.

    Token 0: ratio e^0.1 = 1.10517, advantage 2: -2.21034. Token 1: ratio e^-1 = 0.36788, advantage -1: 0.8, clipped.
    Values 0.5 and 1.0, old values 0.5 and 0, returns 1 and 1: 0.5 * 0.25 = 0.125, and max(0, (0.2 - 1)²) / 2 = 0.32,
    clipped. KL to the sampling policy e^d - 1 - d: 0.00517 and e^-1 = 0.36788.
    """
    run = scripted()
    row = Row(
        "0",
        {"response": ENDED},
        {
            "old_logps": [-1.1, -1.0],
            "old_values": [0.5, 0.0],
            "advantages": [2.0, -1.0],
            "returns": [1.0, 1.0],
        },
    )
    output = PPO().loss(run, micro([row], {"tokens": 5.0}))
    metrics = {name: float(value) for name, value in output.metrics.items()}
    policy = (-2 * math.exp(0.1) + 0.8) / 5
    value = (0.125 + 0.32) / 5
    assert output.loss.item() == pytest.approx(policy + 0.5 * value, rel=1e-5)
    assert metrics == pytest.approx(
        {
            "policy_loss": policy,
            "value_loss": value,
            "policy_clipped_share": 1 / 5,
            "value_clipped_share": 1 / 5,
            "step_kl": (math.exp(0.1) - 1.1 + math.exp(-1)) / 5,
            "entropy": 0.7 * 2 / 5,
        },
        rel=1e-4,
    )


def test_padding_does_not_affect_the_loss() -> None:
    """Two responses of different length in one micro-batch give the sum of each alone."""
    run = scripted()
    (batch,) = PPO(**SETTINGS).batches(run)
    # Otherwise every ratio is 1, which would hide errors in advantages and clips.
    run.policy = Model({ids: [x - 0.3 for x in row] for ids, row in run.policy.table.items()})
    together = PPO().loss(run, micro(batch.rows, batch.denominators)).loss
    alone = [PPO().loss(run, micro([row], batch.denominators)).loss for row in batch.rows]
    torch.testing.assert_close(together, alone[0] + alone[1])


@pytest.mark.parametrize(
    ("kl_target", "expected"),
    [
        # KL 1 against 0.9: error 1/9, times 2 responses over a horizon of 100.
        (0.9, 0.5 * (1 + (1 / 9) * 2 / 100)),
        # Errors are clipped to ±0.2.
        (0.1, 0.5 * (1 + 0.2 * 2 / 100)),
        (50.0, 0.5 * (1 - 0.2 * 2 / 100)),
        (None, 0.5),
    ],
)
def test_adaptive_kl_coef_moves_towards_its_target(kl_target: float | None, expected: float) -> None:
    run = scripted()
    objective = PPO(**SETTINGS | {"rollouts": 2}, kl_target=kl_target, kl_horizon=100, step_kl=None)
    for _ in objective.batches(run):
        run.step += 1
    assert run.reports[0]["kl_coef"] == 0.5
    assert run.reports[1]["kl_coef"] == pytest.approx(expected)
