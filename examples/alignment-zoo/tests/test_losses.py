"""The losses by hand."""

import math

import pytest
import torch
from alignment_zoo.bco import bco
from alignment_zoo.cpo import cpo
from alignment_zoo.dro import dro
from alignment_zoo.ipo import ipo
from alignment_zoo.orpo import odds_ratio
from alignment_zoo.rmu import error
from alignment_zoo.simpo import simpo
from alignment_zoo.spin import last_answer, spin

from alignment_core.plugin_api import TokenSequence


def number(value):
    return torch.tensor([float(value)], requires_grad=True)


def close(found, *expected):
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_simpo():
    # 2 · (-1 + 2) - 1 = 1, and -log σ(1) = log(1 + 1/e).
    close(simpo(number(-1), number(-2), beta=2, gamma=1), math.log(1 + 1 / math.e))


def test_ipo():
    # A margin of 1 with a target of 1 / (2 · 0.25) = 2.
    close(ipo(number(0.5), number(-0.5), tau=0.25), 1)


def test_orpo():
    # Probabilities 1/2 and 1/5 have the odds 1 and 1/4, and -log σ(log 4) = log(5/4).
    close(odds_ratio(number(math.log(1 / 2)), number(math.log(1 / 5))), math.log(5 / 4))
    # Completions that are certain have no finite odds. The gradient must stay finite.
    certain = number(0)
    odds_ratio(certain, number(-1)).sum().backward()
    assert certain.grad.isfinite().all()


def test_cpo():
    # 0.1 · (-10 + 30) = 2, and -log σ(2) = log(1 + e⁻²).
    close(cpo(number(-10), number(-30), beta=0.1), math.log(1 + math.exp(-2)))


def test_bco():
    rewards, good = torch.tensor([0.7, 0.7]), torch.tensor([1.0, 0.0])
    # Both are 0.5 above the shift, which is right for the liked response only.
    close(bco(rewards, good, shift=0.2), math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(0.5)))


def test_dro():
    values, ratios = number(0.25), number(2)
    # The error is 1 - 0.25 - 0.1 · 2 = 0.55.
    loss = dro(torch.ones(1), values, ratios, tau=0.1)
    close(loss, 0.55**2 / 2)
    loss.sum().backward()
    # The value rises by the error. The gradient of the policy is -(r - V) + τ·ratio = -0.75 + 0.2.
    close(values.grad, -0.55)
    close(ratios.grad, -0.55)


def test_rmu():
    # (3, 4) - (6, 8) = (-3, -4), and (9 + 16) / 2.
    close(error(torch.tensor([[3.0, 4.0]]), torch.tensor([6.0, 8.0])), 12.5)


def test_spin():
    # 0.5 · (2 + 2) = 2.
    close(spin(number(2), number(-2), scale=0.5), math.log(1 + math.exp(-2)))


def test_last_answer_of_a_demonstration():
    plain = TokenSequence((1, 2, 3, 4), 2)
    assert last_answer(plain) == plain
    # Prompt 1, answer 2 3, question 4, answer 5 6, and a token that is no target.
    turns = TokenSequence((1, 2, 3, 4, 5, 6, 7), 1, (True, True, False, True, True, False))
    assert last_answer(turns) == TokenSequence((1, 2, 3, 4, 5, 6), 4)
