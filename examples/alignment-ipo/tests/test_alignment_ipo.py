from types import SimpleNamespace

import pytest
import torch
from alignment_ipo import IPO

from alignment_core.plugin_api import TokenSequence
from alignment_core.testing import check


def says(*logps):
    """A model that gives these log-probabilities, whatever it is asked."""
    return SimpleNamespace(logps=lambda sequences: torch.tensor(logps))


def test_loss_by_hand():
    # One pair: 2 chosen and 4 rejected tokens after one of the prompt.
    chosen, rejected = TokenSequence((1, 2, 3), 1), TokenSequence((1, 2, 3, 4, 5), 1)
    micro = SimpleNamespace(sequences={"chosen": [chosen], "rejected": [rejected]}.get, denominators={"rows": 4.0})
    run = SimpleNamespace(policy=says(-3.0, -10.0), reference=says(-4.0, -8.0))
    output = IPO(tau=0.25).loss(run, micro)
    # Log-ratios 1 and -2, per token 0.5 and -0.5: a margin of 1 where 1 / (2 · 0.25) = 2 is aimed at. 4 pairs a step.
    assert float(output.loss) == pytest.approx((1 - 2) ** 2 / 4)
    assert float(output.metrics["margin"]) == pytest.approx(1 / 4)


def test_it_keeps_the_contract():
    check(IPO).assert_passed()
