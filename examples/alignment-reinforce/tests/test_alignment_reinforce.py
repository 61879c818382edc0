import math

import pytest
import torch
from alignment_reinforce import ReinforcePlusPlus

from alignment_core.on_policy import Sampled
from alignment_core.plugin_api import Rollout, Row, TokenLogps, TokenSequence
from alignment_core.testing import check


def test_each_token_gets_the_rewards_that_follow_it():
    prompt = Row("prompt", {"prompt": TokenSequence((1,), 1)})
    sequences = [TokenSequence((1, 2, 3), 1), TokenSequence((1, 2), 1)]
    old = TokenLogps(
        torch.tensor([[-1.0, -2.0], [-1.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]]), torch.zeros(2, 2)
    )
    sampled = Sampled(
        rollouts=[Rollout(prompt, sequence, True, "") for sequence in sequences],
        samples=1,
        old=old,
        reference_logps=torch.tensor([[-2.0, -1.0], [-1.0, 0.0]]),
        scores=torch.tensor([4.0, 1.0]),
    )
    first, second = ReinforcePlusPlus(kl_coef=0.5).experience(None, sampled).rows
    # KL 1, -1 and 0. Rewards -0.5, 0.5 + 4 and 1, so 4, 4.5 and 1 follow: mean 19/6, and the squares of the
    # deviations 5/6, 8/6 and -13/6 have the mean 258/108.
    deviation = math.sqrt(258 / 108)
    assert first.values["advantages"] == pytest.approx([5 / 6 / deviation, 8 / 6 / deviation])
    assert second.values["advantages"] == pytest.approx([-13 / 6 / deviation])
    # Half of what comes later: 1.75, 4.5 and 1. Whitening keeps the ratio of differences.
    first, second = ReinforcePlusPlus(kl_coef=0.5, gamma=0.5).experience(None, sampled).rows
    begin, end = first.values["advantages"]
    assert (begin - end) / (end - second.values["advantages"][0]) == pytest.approx(-2.75 / 3.5)


def test_conformance():
    check(ReinforcePlusPlus).assert_passed()
