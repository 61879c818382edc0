from types import SimpleNamespace

import pytest
import torch
from alignment_ipo import IPO

from alignment_core.plugin_api import TokenSequence
from alignment_core.testing import check


def model_with(*logps):
    """A model that returns these log-probabilities for any sequences."""
    return SimpleNamespace(logps=lambda sequences: torch.tensor(logps))


def test_loss_by_hand():
    # One pair: 2 chosen and 4 rejected tokens after 1 prompt token.
    chosen, rejected = TokenSequence((1, 2, 3), 1), TokenSequence((1, 2, 3, 4, 5), 1)
    micro = SimpleNamespace(sequences={"chosen": [chosen], "rejected": [rejected]}.get, denominators={"rows": 4.0})
    run = SimpleNamespace(policy=model_with(-3.0, -10.0), reference=model_with(-4.0, -8.0))
    output = IPO(tau=0.25).loss(run, micro)
    # Log-ratios 1 and -2, per token 0.5 and -0.5: a margin of 1. The target is 1 / (2 · 0.25) = 2. A step has 4 pairs.
    assert float(output.loss) == pytest.approx((1 - 2) ** 2 / 4)
    assert float(output.metrics["margin"]) == pytest.approx(1 / 4)


def test_conformance():
    check(IPO).assert_passed()
