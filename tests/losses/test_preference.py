"""DPO, KTO and Bradley–Terry: values by hand, and properties that hold for every input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment_core import losses

LN2 = math.log(2)
log_ratios = st.floats(-50, 50, width=32)
betas = st.floats(0.015625, 2.0, width=32)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_dpo_by_hand() -> None:
    """beta 0.1, log-ratios 1.0 and -0.5: u = 0.15 and -log sigmoid(0.15) = ln(1 + e^-0.15) = ln 1.8607080 = 0.6209571.

    Smoothing 0.1 adds 0.1 * u = 0.015, since -log sigmoid(-u) = u - log sigmoid(u). A margin of 0.15 leaves u = 0.
    """
    chosen, rejected = torch.tensor([1.0]), torch.tensor([-0.5])
    assert losses.dpo(chosen, rejected, beta=0.1).item() == pytest.approx(0.6209571, abs=1e-6)
    smoothed = losses.dpo(chosen, rejected, beta=0.1, label_smoothing=0.1)
    assert smoothed.item() == pytest.approx(0.6359571, abs=1e-6)
    assert losses.dpo(chosen, rejected, beta=0.1, margin=0.15).item() == pytest.approx(LN2, abs=1e-6)
    assert losses.dpo(chosen, rejected, beta=0.1, margin=torch.tensor([0.15])).item() == pytest.approx(LN2, abs=1e-6)


def test_dpo_gradient_by_hand() -> None:
    """The derivative with respect to the chosen log-ratio is -beta * sigmoid(-u) (2305.18290, section 4)."""
    chosen = torch.tensor([1.0], requires_grad=True)
    rejected = torch.tensor([-0.5], requires_grad=True)
    losses.dpo(chosen, rejected, beta=0.1).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.1 * sigmoid(-0.15), rel=1e-5)
    assert rejected.grad.item() == pytest.approx(0.1 * sigmoid(-0.15), rel=1e-5)


@given(ratio=log_ratios, beta=betas, smoothing=st.floats(0, 0.49))
def test_dpo_of_the_reference_is_exactly_ln_2(ratio: float, beta: float, smoothing: float) -> None:
    equal = torch.tensor([ratio])
    assert losses.dpo(equal, equal, beta=beta).item() == torch.tensor(LN2).item()
    assert losses.dpo(equal, equal, beta=beta, label_smoothing=smoothing).item() == pytest.approx(LN2, rel=1e-6)


@given(chosen=log_ratios, rejected=log_ratios, beta=betas)
def test_dpo_of_a_swapped_pair_differs_by_its_margin(chosen: float, rejected: float, beta: float) -> None:
    c, r = torch.tensor([chosen]), torch.tensor([rejected])
    difference = losses.dpo(r, c, beta=beta) - losses.dpo(c, r, beta=beta)
    assert difference.item() == pytest.approx(beta * (chosen - rejected), rel=1e-4, abs=1e-4)


@given(pairs=st.lists(st.tuples(log_ratios, log_ratios), min_size=1, max_size=8), data=st.data())
def test_dpo_does_not_mix_rows(pairs: list[tuple[float, float]], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(pairs))))
    chosen, rejected = torch.tensor(pairs).unbind(1)
    index = torch.tensor(order)
    torch.testing.assert_close(
        losses.dpo(chosen[index], rejected[index], beta=0.3), losses.dpo(chosen, rejected, beta=0.3)[index]
    )


def test_dpo_approaches_ln_2_as_beta_vanishes() -> None:
    chosen, rejected = torch.tensor([40.0]), torch.tensor([-40.0])
    assert losses.dpo(chosen, rejected, beta=1e-7).item() == pytest.approx(LN2, abs=1e-5)


def test_dpo_is_finite_for_extreme_log_ratios() -> None:
    far = losses.dpo(torch.tensor([-5000.0]), torch.tensor([5000.0]), beta=1.0)
    assert far.item() == 10000.0


def test_kto_by_hand() -> None:
    """beta 0.1, r = 2, z0 = 0.5: beta (r - z0) = 0.15, sigmoid(0.15) = 0.5374298.

    Desirable with weight 1: 1 - 0.5374298. Undesirable with weight 0.5: 0.5 * (1 - sigmoid(-0.15)) = 0.2687149.
    """
    loss = losses.kto(
        torch.tensor([2.0, 2.0]),
        torch.tensor([1.0, 0.0]),
        z0=0.5,
        beta=0.1,
        weight_desirable=1.0,
        weight_undesirable=0.5,
    )
    assert loss.tolist() == pytest.approx([0.4625702, 0.2687149], abs=1e-6)


@given(
    ratio=log_ratios,
    z0=st.floats(0, 50, width=32),
    beta=betas,
    desirable=st.booleans(),
    good=st.floats(0.1, 3),
    bad=st.floats(0.1, 3),
)
def test_kto_is_between_0_and_its_weight(
    ratio: float, z0: float, beta: float, desirable: bool, good: float, bad: float
) -> None:
    r = torch.tensor([ratio], requires_grad=True)
    loss = losses.kto(
        r, torch.tensor([float(desirable)]), z0=z0, beta=beta, weight_desirable=good, weight_undesirable=bad
    )
    assert 0 <= loss.item() <= (good if desirable else bad) * (1 + 1e-6)
    loss.sum().backward()
    assert r.grad is not None
    # A larger log-ratio lowers the loss of a liked completion and raises that of a disliked one.
    assert r.grad.item() <= 0 if desirable else r.grad.item() >= 0


def test_kto_at_the_reference_is_half_of_each_weight() -> None:
    loss = losses.kto(
        torch.zeros(2), torch.tensor([1.0, 0.0]), z0=0.0, beta=0.7, weight_desirable=0.8, weight_undesirable=0.4
    )
    assert loss.tolist() == pytest.approx([0.4, 0.2])


@given(rows=st.lists(st.tuples(log_ratios, st.booleans()), min_size=1, max_size=8), data=st.data())
def test_kto_does_not_mix_rows(rows: list[tuple[float, bool]], data: st.DataObject) -> None:
    ratios, labels = torch.tensor(rows, dtype=torch.float32).unbind(1)
    index = torch.tensor(data.draw(st.permutations(range(len(rows)))))
    settings = {"z0": 0.3, "beta": 0.4, "weight_desirable": 1.0, "weight_undesirable": 0.7}
    whole = losses.kto(ratios, labels, **settings)
    torch.testing.assert_close(losses.kto(ratios[index], labels[index], **settings), whole[index])
    for i in range(len(rows)):
        torch.testing.assert_close(losses.kto(ratios[i : i + 1], labels[i : i + 1], **settings), whole[i : i + 1])


@given(ratio=log_ratios, z0=st.floats(0, 50, width=32), desirable=st.booleans())
def test_kto_approaches_half_of_its_weight_as_beta_vanishes(ratio: float, z0: float, desirable: bool) -> None:
    loss = losses.kto(
        torch.tensor([ratio]), torch.tensor([float(desirable)]), z0=z0, beta=1e-8,
        weight_desirable=0.8, weight_undesirable=0.6,
    )  # fmt: skip
    assert loss.item() == pytest.approx(0.4 if desirable else 0.3, abs=1e-5)


@pytest.mark.parametrize("desirable", [0.0, 1.0])
def test_kto_of_one_class_uses_only_its_weight(desirable: float) -> None:
    ratios, labels = torch.tensor([0.3, -1.0, 2.0]), torch.full((3,), desirable)

    def loss(good: float, bad: float) -> list[float]:
        result: list[float] = losses.kto(
            ratios, labels, z0=0.2, beta=0.5, weight_desirable=good, weight_undesirable=bad
        ).tolist()
        return result

    unused = {"good": 1.0, "bad": 99.0} if desirable else {"good": 99.0, "bad": 1.0}
    assert loss(**unused) == loss(1.0, 1.0)


def test_bradley_terry_by_hand() -> None:
    """Scores 1.0 and 0.5: -log sigmoid(0.5) = ln(1 + e^-0.5) = ln 1.6065307 = 0.4740770; margin 0.5 leaves ln 2."""
    chosen, rejected = torch.tensor([1.0]), torch.tensor([0.5])
    assert losses.bradley_terry(chosen, rejected).item() == pytest.approx(0.4740770, abs=1e-6)
    assert losses.bradley_terry(chosen, rejected, margin=0.5).item() == pytest.approx(LN2, abs=1e-6)


@given(chosen=log_ratios, rejected=log_ratios, shift=st.floats(-10, 10, width=32))
def test_bradley_terry_depends_only_on_differences(chosen: float, rejected: float, shift: float) -> None:
    c, r = torch.tensor([chosen]), torch.tensor([rejected])
    torch.testing.assert_close(
        losses.bradley_terry(c + shift, r + shift), losses.bradley_terry(c, r), rtol=1e-4, atol=1e-4
    )
    swapped = losses.bradley_terry(r, c) - losses.bradley_terry(c, r)
    assert swapped.item() == pytest.approx(chosen - rejected, rel=1e-4, abs=1e-4)
