"""RLOO as a plugin: advantages and loss by hand."""

from __future__ import annotations

import math

import pytest
from grouped import CUT, GROUPS, LONG, OTHER, SHORT, grouped_run
from scripted import Model, ScriptedRun, micro

from alignment_core.plugin_api import Row, TokenSequence
from alignment_plugins.rloo import RLOO


def test_advantages_by_hand() -> None:
    """KL 0, 1 and 1, -1 with beta 0.5: rewards 4, 1.5 and 0.5, 3 + 0.5 - 1 for the missing end."""
    run = grouped_run((4.0, 2.0, 1.0, 3.0))
    (batch,) = RLOO(**GROUPS, kl_coef=0.5).batches(run)
    found = {row.sequences["response"]: row.number("advantage") for row in batch.rows}
    assert found == {SHORT: 2.5, LONG: -2.5, OTHER: -2.0, CUT: 2.0}
    # The variance of 2.5, -2.5, -2, 2 with mean 0 is 20.5 / 3.
    assert run.reports[0]["advantage_deviation"] == pytest.approx(math.sqrt(20.5 / 3))


def test_the_loss_by_hand() -> None:
    """The ratio of a response is one number: e^(0.2 - 0.1), and e^0.5 = 1.65, which counts as 1.2 with A = 1."""
    two, one = TokenSequence((5, 6, 2), 1), TokenSequence((7, 2), 1)
    run = ScriptedRun(policy=Model({two.ids: [-1.0, -2.0], one.ids: [-0.5]}, entropy=0.7))
    rows = [
        Row("0", {"response": two}, {"advantage": -2.0, "old_logps": [-1.2, -1.9]}),
        Row("1", {"response": one}, {"advantage": 1.0, "old_logps": [-1.0]}),
    ]
    output = RLOO().loss(run, micro(rows, {"tokens": 3.0, "rows": 2.0}))
    assert output.loss.item() == pytest.approx((2 * math.exp(0.1) - 1.2) / 2)
    moved = math.exp(0.2) - 1.2 + math.exp(-0.1) - 0.9 + math.exp(0.5) - 1.5
    assert {name: float(value) for name, value in output.metrics.items()} == pytest.approx(
        {"policy_clipped_share": 0.5, "step_kl": moved / 3, "entropy": 0.7}, rel=1e-4
    )


def test_first_gradient_is_that_of_reinforce() -> None:
    """At the sampling policy, the gradient of a token's log-probability is -A over the number of responses."""
    two = TokenSequence((5, 6, 2), 1)
    run = ScriptedRun(policy=Model({two.ids: [-1.0, -2.0]}))
    logps = run.policy.token_logps([two])
    logps.logps.requires_grad_()
    run.policy.token_logps = lambda sequences, temperature: logps  # type: ignore[method-assign]
    row = Row("0", {"response": two}, {"advantage": 3.0, "old_logps": [-1.0, -2.0]})
    RLOO().loss(run, micro([row], {"tokens": 2.0, "rows": 4.0})).loss.backward()
    assert logps.logps.grad is not None
    assert logps.logps.grad.tolist() == [[-0.75, -0.75]]
