"""The rewards of a run: weights, normalization, clipping, missing scores, metrics, and the units of the value model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scripted import Model, ScriptedRun

from alignment_core.errors import PluginError
from alignment_core.plugin_api import Rollout, Row, TokenSequence
from alignment_core.training.rewards import Part, Rewards, ValueInUnits, filled
from alignment_core.training.rows import Rows
from alignment_core.training.run import Run

SEQUENCES = [TokenSequence((5, 6 + i), 1) for i in range(4)]
ROLLOUTS = [Rollout(Row(f"row-{i}", {}), sequence, True, f"text {i}") for i, sequence in enumerate(SEQUENCES)]
MODEL = Model({sequence.ids: [score] for sequence, score in zip(SEQUENCES, [1.0, 2.0, 3.0, 6.0], strict=True)})
CPU = torch.device("cpu")


def judge(*scores: float | None) -> Any:
    def judged(rollouts: Sequence[Rollout]) -> list[float | None]:
        return [scores[SEQUENCES.index(rollout.sequence)] for rollout in rollouts]

    return judged


def test_a_mixture_by_hand() -> None:
    """2·(1, 2, 3, 6) - 0.5·(0, 4, 2, 2) is 2, 2, 5, 11: mean 5, deviation √((9 + 9 + 0 + 36)/4) = √13.5."""
    parts = [Part(weight=2.0), Part("rule", judge(0, 4, 2, 2), -0.5)]
    plain = Rewards(parts, normalise=False)
    assert plain(MODEL, ROLLOUTS, CPU).tolist() == [2, 2, 5, 11]
    assert plain.take_metrics() == {"raw_score_reward_model": 3, "raw_score_rule": 2, "raw_score": 5}
    assert plain.take_metrics() == {}
    rewards = Rewards(parts)
    expected = [(x - 5) / 13.5**0.5 for x in (2, 2, 5, 11)]
    assert rewards(MODEL, ROLLOUTS, CPU).tolist() == pytest.approx(expected)
    # The value model started from the reward model: 2·v, whose mean was 6, in units of the deviation.
    assert rewards.units == pytest.approx({"mean": 5, "deviation": 13.5**0.5, "value_mean": 6})
    value = ValueInUnits(Model({SEQUENCES[0].ids: [4.0]}), rewards)
    assert value.values(SEQUENCES[:1]).item() == pytest.approx((2 * 4 - 6) / 13.5**0.5)


def test_equal_responses_have_the_same_reward_although_a_pass_rounds_each_of_its_rows() -> None:
    class Rounding:
        def scores(self, sequences: Sequence[TokenSequence]) -> torch.Tensor:
            return torch.tensor([sequence.ids[-1] + 1e-3 * row for row, sequence in enumerate(sequences)])

    rollouts = [ROLLOUTS[number] for number in (1, 0, 1, 3, 0)]
    rewards = Rewards([Part()], normalise=False)(Rounding(), rollouts, CPU)
    assert rewards.tolist() == pytest.approx([7, 6.001, 7, 9.002, 6.001], abs=1e-5)
    assert rewards[0] == rewards[2]


def test_later_calls_keep_the_units_of_the_first() -> None:
    rewards = Rewards([Part("rule", judge(0, 1, 2, 101))])
    first = rewards(MODEL, ROLLOUTS[:2], CPU)  # mean 0.5, deviation 0.5
    assert first.tolist() == [-1, 1]
    assert rewards(MODEL, ROLLOUTS[2:], CPU).tolist() == [3, 201]


def test_rewards_are_clipped_after_normalization() -> None:
    rewards = Rewards([Part("rule", judge(0, 1, 2, 101))], clip=2.0)
    rewards(MODEL, ROLLOUTS[:2], CPU)
    assert rewards(MODEL, ROLLOUTS, CPU).tolist() == [-1, 1, 2, 2]
    assert rewards.take_metrics()["reward_clipped_share"] == pytest.approx(2 / 6)


def test_metrics_are_means_over_all_responses_since_the_last_report() -> None:
    rewards = Rewards([Part("rule", judge(0, 4, 2, 2))], normalise=False)
    rewards(MODEL, ROLLOUTS[:1], CPU)
    rewards(MODEL, ROLLOUTS[1:], CPU)
    rewards(MODEL, ROLLOUTS[1:2], CPU, prefix="held_out_")
    assert rewards.take_metrics() == {"raw_score": 2, "held_out_raw_score": 4}


def test_equal_rewards_are_not_normalized_and_are_warned_of() -> None:
    warnings: list[str] = []
    rewards = Rewards([Part("rule", judge(3, 3, 3, 4))], warn=warnings.append)
    assert rewards(MODEL, ROLLOUTS[:3], CPU).tolist() == [3, 3, 3]
    assert rewards(MODEL, ROLLOUTS, CPU).tolist() == [3, 3, 3, 4]
    (warning,) = warnings
    assert "all 3 responses" in warning


def test_a_missing_score_is_the_mean_of_the_others_and_is_counted() -> None:
    warnings: list[str] = []
    rewards = Rewards([Part("slow", judge(1, None, 2, 6))], normalise=False, warn=warnings.append)
    assert rewards(MODEL, ROLLOUTS, CPU).tolist() == [1, 3, 2, 6]
    assert rewards.take_metrics() == {"raw_score": 3, "unscored_share_slow": 0.25}
    rewards(MODEL, ROLLOUTS, CPU)
    assert len(warnings) == 1
    with pytest.raises(PluginError, match="slow: an evaluator gave no score to most responses"):
        filled([1.0, None, None], "slow")
    assert filled([], "slow") == []


def test_the_reward_model_is_not_asked_unless_it_counts() -> None:
    rewards = Rewards([Part("rule", judge(0, 1, 2, 3))], normalise=False)
    assert rewards(None, ROLLOUTS, CPU).dtype == torch.float32


def test_reports_contain_the_parts() -> None:
    run = ScriptedRun(reward=MODEL, rewarded_by=Rewards([Part(), Part("rule", judge(0, 4, 2, 2))], normalise=False))
    run.rewards(ROLLOUTS)
    run.rewards(ROLLOUTS[:1], held_out=True)
    run.report({"kl": 1.0})
    assert run.reports == [
        {"raw_score_reward_model": 3, "raw_score_rule": 2, "raw_score": 5, "held_out_raw_score_reward_model": 1,
         "held_out_raw_score_rule": 0, "held_out_raw_score": 1, "kl": 1}
    ]  # fmt: skip


class _Open(Run):
    def __post_init__(self) -> None:
        pass


def test_pairs_are_judged_and_a_missing_verdict_is_a_tie() -> None:
    stub: Any = None
    run = _Open(stub, Rows(), stub, stub, 0, stub)
    run.pair_judges["judge"] = lambda a, b: [0.9, None]
    assert run.prefer("judge", ROLLOUTS[:2], ROLLOUTS[:2]) == [0.9, 0.5]
    with pytest.raises(PluginError, match="different prompts"):
        run.prefer("judge", ROLLOUTS[:2], ROLLOUTS[2:])
    with pytest.raises(PluginError, match="pair_evaluators"):
        run.prefer("other", ROLLOUTS, ROLLOUTS)
