"""The optimizers on scripted models, and in the conformance kit."""

import math
from types import SimpleNamespace

import alignment_zoo
import pytest
import torch
from alignment_zoo.bco import BCO
from alignment_zoo.cpo import CPO
from alignment_zoo.dro import DRO
from alignment_zoo.gdpo import GDPO
from alignment_zoo.ipo import IPO
from alignment_zoo.orpo import ORPO
from alignment_zoo.rmu import RMU
from alignment_zoo.simpo import SimPO
from alignment_zoo.spin import SPIN
from alignment_zoo.tr_dpo import TRDPO

from alignment_core.advice import advise
from alignment_core.plugin_api import Row, TokenSequence
from alignment_core.testing import check

# One pair of a step of 4 pairs with 8 chosen tokens: 2 chosen and 4 rejected tokens after a prompt of 1 token.
CHOSEN, REJECTED = TokenSequence((1, 2, 3), 1), TokenSequence((1, 2, 3, 4, 5), 1)
PAIR = SimpleNamespace(
    rows=[Row("pair", {})],
    sequences={"chosen": [CHOSEN], "rejected": [REJECTED]}.get,
    denominators={"rows": 4.0, "chosen_tokens": 8.0},
)


def model(*logps):
    """A model that gives these log-probabilities to any sequences."""
    return SimpleNamespace(logps=lambda sequences: torch.tensor(logps))


def softplus(value):
    return math.log(1 + math.exp(value))


# log π is -3 and -10, per token -1.5 and -2.5. log π_ref is -4 and -8, so that the log-ratios are 1 and -2.
PAIR_LOSSES = [
    (SimPO(beta=2.0, gamma=1.0), softplus(-(2 * 1 - 1)) / 4),
    (IPO(tau=0.25), (0.5 + 0.5 - 2) ** 2 / 4),
    (CPO(beta=0.1, sft_weight=0.5), softplus(-0.7) / 4 + 0.5 * 3 / 8),
    # The odds are 1 / (e^1.5 - 1) and 1 / (e^2.5 - 1), and -log σ(log q) = log(1 + 1/q).
    (ORPO(odds_weight=0.5), 3 / 8 + 0.5 * math.log(1 + (math.exp(1.5) - 1) / (math.exp(2.5) - 1)) / 4),
    (TRDPO(beta=0.2), softplus(-0.2 * 3) / 4),
]


@pytest.mark.parametrize(("optimizer", "expected"), PAIR_LOSSES, ids=lambda value: getattr(value, "name", ""))
def test_loss_of_a_pair(optimizer, expected):
    reference = model(-4.0, -8.0)
    run = SimpleNamespace(policy=model(-3.0, -10.0), reference=reference, role={"moving_reference": reference}.get)
    output = optimizer.loss(run, PAIR)
    assert float(output.loss) == pytest.approx(expected, rel=1e-5)
    assert float(output.metrics.get("accuracy", output.metrics.get("margin"))) == pytest.approx(1 / 4)


def test_tr_dpo_moves_its_reference_after_every_second_step():
    moves = []
    run = SimpleNamespace(step=0, preferences=[], snapshot=lambda name, mix: moves.append((run.step, name, mix)))
    run.shuffled = lambda rows, batch_size, epochs: ([Row("pair", {"chosen": CHOSEN})] for _ in range(6))
    for _ in TRDPO(every=2, alpha=0.3).batches(run):
        run.step += 1
    assert moves == [(2, "moving_reference", 0.3), (4, "moving_reference", 0.3)]


def test_bco_shifts_by_the_averages_of_both_rewards():
    optimizer, run = BCO(decay=0.9), SimpleNamespace(step=0, state={}, metrics={}, feedback=[])
    run.shuffled = lambda rows, batch_size, epochs: ([Row("row", {}, {"desirable": 1.0})] for _ in range(9))
    batches = optimizer.batches(run)
    assert next(batches).constants["shift"] == 0
    # 0.1 · 0.4 and 0.1 · -0.2, whose mean is 0.01.
    run.step, run.metrics = 1, {"reward_good": 0.4, "reward_bad": -0.2, "desirable_share": 0.5}
    assert next(batches).constants["shift"] == pytest.approx(0.01)
    # A run that was stopped here builds the same batch again.
    assert next(optimizer.batches(run)).constants["shift"] == pytest.approx(0.01)
    # A step without disliked responses says nothing of their reward: (0.9 · 0.04 + 0.1 · 1 - 0.02) / 2.
    run.step, run.metrics = 2, {"reward_good": 1.0, "reward_bad": 0.0, "desirable_share": 1.0}
    assert next(batches).constants["shift"] == pytest.approx(0.058)


def test_dro_reads_the_value_at_the_end_of_the_prompt():
    asked = []

    def hidden(sequences):
        asked.extend(sequences)
        return torch.tensor([[[1.0, 2.0]]])

    run = SimpleNamespace(
        policy=model(-2.0),
        reference=SimpleNamespace(logps=model(-4.0).logps, hidden=hidden),
        parameters={"value_weight": torch.tensor([0.1, 0.05]), "value_bias": torch.tensor(0.05)},
    )
    micro = SimpleNamespace(
        sequences={"response": [TokenSequence((7, 8, 9), 2)]}.get,
        values={"desirable": torch.ones(1), "weight": torch.tensor([3.0])}.get,
        denominators={"rows": 2.0},
    )
    # The value is 0.1 + 0.1 + 0.05 = 0.25, and the error 1 - 0.25 - 0.1 · 2. It counts as 3 votes in a step of 2 rows.
    assert float(DRO(kl_coef=0.1).loss(run, micro).loss) == pytest.approx(3 * 0.55**2 / 2 / 2)
    assert asked == [TokenSequence((7, 8), 1)]


def test_spin_answers_with_the_policy_of_the_epoch_before():
    moves, asked = [], []
    rows = [Row("one", {"demonstration": TokenSequence((1, 2, 3), 2)})]

    def generate(prompts, *, max_new_tokens, role):
        asked.append(([prompt.sequences["prompt"] for prompt in prompts], max_new_tokens, role))
        return [SimpleNamespace(sequence=TokenSequence((1, 2, 5, 6), 2))]

    run = SimpleNamespace(step=0, demonstrations=rows, snapshot=lambda name: moves.append((run.step, name)))
    run.generate, run.shuffled = generate, lambda rows, batch_size, epochs: (rows for _ in range(epochs))
    batches = []
    for batch in SPIN(epochs=3, max_new_tokens=4).batches(run):
        batches.append(batch)
        run.step += 1
    assert moves == [(1, "opponent"), (2, "opponent")]
    assert asked == [([TokenSequence((1, 2), 2)], 4, "opponent")] * 3
    assert batches[-1].rows == [
        Row("one", {"real": TokenSequence((1, 2, 3), 2), "own": TokenSequence((1, 2, 5, 6), 2)})
    ]


def test_rmu_steers_disliked_and_keeps_liked_responses():
    states = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[1.0, 1.0], [2.0, 2.0]]])
    run = SimpleNamespace(
        policy=SimpleNamespace(hidden=lambda sequences: states),
        reference=SimpleNamespace(hidden=lambda sequences: torch.ones(2, 2, 2)),
        random=lambda name: SimpleNamespace(random=iter((0.3, 0.4)).__next__),
    )
    micro = SimpleNamespace(
        sequences={"response": [TokenSequence((1, 2), 1), TokenSequence((1, 2, 3), 1)]}.get,
        values={"desirable": torch.tensor([0.0, 1.0])}.get,
        denominators={"liked": 5, "disliked": 2},
    )
    output = RMU(steering=10.0, keep_weight=2.0).loss(run, micro)
    # The direction is (0.6, 0.8), its target (6, 8). The second state of the first row is padding.
    assert float(output.metrics["forget"]) == pytest.approx((9 + 16) / 2 / 2)
    # The second row's states are 0 and 1 away from the reference's.
    assert float(output.metrics["keep"]) == pytest.approx(1 / 5)
    assert float(output.loss) == pytest.approx(6.25 + 2 / 5)


def test_gdpo_normalizes_each_objective_by_its_group():
    """Two groups of two responses. By the second objective, those of the first group are equal.

    Two rewards that differ by d have the deviation d/√2, so they become ±a with a = 1/√2, whatever d is. The sums are
    ±a in the first group and ±2a in the second, with the mean square 2.5·a².
    """
    judged = {"objectives.0": [100.0, 0.0, 100.0, 0.0], "objectives.1": [1.0, 1.0, 0.002, 0.0]}
    run = SimpleNamespace(state={}, judge=lambda place, rollouts: judged[place])
    objective = GDPO(**GDPO.example, samples=2, rollout_size=4)
    assert objective.rate(run, [None] * 4, held_out=False) == [101.0, 1.0, 100.002, 0.0]
    seen = {}
    sampled = SimpleNamespace(
        scores=torch.zeros(4),
        grouped=lambda scores: scores.view(-1, 2),
        old=SimpleNamespace(logps=torch.zeros(4, 1)),
        reference_logps=torch.zeros(4, 1),
        rows=lambda constants: seen.update(constants) or [],
    )
    found = objective.experience(run, sampled)
    assert found.metrics == pytest.approx({"objective_0": 50.0, "objective_1": 0.5005})
    unit = 1 / math.sqrt(2.5)
    # The deviation 0.0014 of the last pair has 0.0001 added, as every deviation.
    assert seen["advantage"].tolist() == pytest.approx([unit, -unit, 2 * unit, -2 * unit], rel=0.05)
    assert run.state == {}


CHECKED = {"tr_dpo": {"every": 2}, "spin": {"epochs": 2}}


@pytest.mark.parametrize("optimizer", alignment_zoo.alignment_optimizers(), ids=lambda each: each.__name__)
def test_conformance(optimizer):
    check(optimizer, **CHECKED.get(optimizer.model_fields["name"].default, {})).assert_passed()


@pytest.mark.parametrize("optimizer", alignment_zoo.alignment_optimizers(), ids=lambda each: each.__name__)
def test_advice_names_the_setting_that_holds_the_policy_to_a_reference_or_an_opponent(optimizer) -> None:
    settings = optimizer(**optimizer.example)
    (advice,) = [one for one in advise({"evaluate": {"kl": 40.0}}, settings) if one.rule == "kl-runs-away"]
    held = advice.do.startswith("raise `optimizer.")
    needs = settings.needs()
    assert held == (needs.reference or bool(needs.snapshots)), advice.do
    assert not held or f"`optimizer.{optimizer.kl_setting}` or lower" in advice.do


def test_forms_can_tell_the_optimizers_apart() -> None:
    """Prefect's pages choose the tab of a form by the names of its settings, so no two may have the same."""
    optimizers = alignment_zoo.alignment_optimizers()
    assert len({frozenset(optimizer.model_fields) for optimizer in optimizers}) == len(optimizers)
