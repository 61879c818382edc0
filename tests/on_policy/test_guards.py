"""The guards of on-policy optimizers on a scripted rollout: measurements, kept weights, warnings and stops."""

from __future__ import annotations

from typing import Any

import pytest
from runs import prompt_rows
from scripted import Model, ScriptedRun

from alignment_core.plugin_api import Rollout, TokenSequence
from alignment_core.training.rewards import Rewards
from alignment_plugins.ppo import PPO

PROMPT, *HELD_OUT = prompt_rows(5)
RESPONSE = TokenSequence((*PROMPT.sequences["prompt"].ids, 6, 2), PROMPT.sequences["prompt"].start)
NO_HELD_OUT = "there are no held-out prompts for choosing the best policy, so the last policy is kept"


def answers() -> list[Rollout]:
    """Return a response of one token to each held-out prompt."""
    found = []
    for i, prompt in enumerate(HELD_OUT):
        ids = prompt.sequences["prompt"].ids
        found.append(Rollout(prompt, TokenSequence((*ids, 100 + i), len(ids)), True, ""))
    return found


class World(ScriptedRun):
    """A run with one response of two tokens. Its KL and score and the held-out scores follow a plan."""

    def __init__(self, *, held_out: bool = True) -> None:
        super().__init__(
            prompts=[PROMPT],
            rollouts=[Rollout(PROMPT, RESPONSE, True, "")],
            held_out_rollouts=answers() if held_out else [],
            rewarded_by=Rewards(normalise=False),
        )
        self.set_outputs(score=0.0, kl=0.0, held_out=[0.0, 1.0, 2.0, 3.0])

    def set_outputs(self, *, score: float, kl: float, held_out: list[float]) -> None:
        """Set what the models return: half of `kl` on each token of the response, all of it on a held-out one."""
        sequences = [rollout.sequence for rollout in answers()]
        self.policy = Model({RESPONSE.ids: [kl / 2] * 2, **{s.ids: [kl] for s in sequences}})
        self.reference = Model({RESPONSE.ids: [0.0] * 2, **{s.ids: [0.0] for s in sequences}})
        self.value = Model({RESPONSE.ids: [0.0, 0.0]})
        scores = {s.ids: [x] for s, x in zip(sequences, held_out, strict=True)}
        self.reward = Model({RESPONSE.ids: [score], **scores})

    def lengthen(self, tokens: int) -> None:
        """Generate responses of `tokens` tokens from now on."""
        longer = TokenSequence((*PROMPT.sequences["prompt"].ids, *[6] * tokens), RESPONSE.start)
        self.rollouts = [Rollout(PROMPT, longer, True, "")]
        for model in (self.policy, self.reference, self.value):
            model.table = {**model.table, longer.ids: [0.0] * tokens}
        self.reward.table = {**self.reward.table, longer.ids: [0.0]}


def ppo(**settings: Any) -> PPO:
    base: dict[str, Any] = {"rollout_size": 1, "batch_size": 1, "rollouts": 4, "epochs": 1, "held_out_every": 1}
    return PPO(**base | {"step_kl": None} | settings)


def follow(objective: PPO, run: World, plan: list[dict[str, Any]]) -> World:
    """Train, and after each step set the models to the next entry of the plan. The last entry stays."""
    run.set_outputs(**plan[0])
    for i, _ in enumerate(objective.batches(run), start=1):
        run.step += 1
        run.set_outputs(**plan[min(i, len(plan) - 1)])
    return run


def moment(held_out: list[float], *, score: float = 0.0, kl: float = 0.0) -> dict[str, Any]:
    return {"score": score, "kl": kl, "held_out": held_out}


def test_the_best_policy_on_held_out_prompts_is_the_result() -> None:
    """The means after 0 to 4 rollouts are 0, 1, 3, 2 and 2.5. The third policy is kept and restored at the end."""
    plan = [moment([m - 1, m, m, m + 1]) for m in (0.0, 1.0, 3.0, 2.0, 2.5)]
    run = follow(ppo(), World(), plan)
    assert run.kept_at == [0, 1, 2]
    assert run.restored == 1
    assert [report["held_out_score"] for report in run.reports] == [0, 1, 3, 2, 2.5]
    assert [report["kept_after_rollout"] for report in run.reports] == [0, 1, 2, 2, 2]
    assert run.reports[0]["held_out_length"] == 1
    assert run.warnings == []


def test_a_policy_over_the_kl_limit_is_not_kept() -> None:
    """The last measurement comes after the last rollout, so its KL stops nothing."""
    plan = [moment([m] * 4, kl=kl) for m, kl in ((0.0, 0.0), (1.0, 9.0), (2.0, 9.9), (3.0, 9.5), (9.0, 10.1))]
    run = follow(ppo(kl_ceiling=10), World(), plan)
    assert run.kept_at == [0, 1, 2, 3]
    assert run.reports[-1]["held_out_kl"] == pytest.approx(10.1)


def test_held_out_prompts_are_measured_periodically_and_at_the_end() -> None:
    run = follow(ppo(rollouts=5, held_out_every=2, held_out_prompts=3), World(), [moment([0.0] * 4)])
    measured = ["held_out_score" in report for report in run.reports]
    assert measured == [True, False, True, False, True, True]
    assert [len(names) for names, _ in run.asked_to_generate if names[0] != PROMPT.id] == [3, 3, 3, 3]


def test_training_without_improvement_restores_the_sft_model_with_a_warning() -> None:
    run = follow(ppo(), World(), [moment([1.0, 2.0, 3.0, 4.0]), moment([0.9, 1.8, 2.7, 3.6])])
    assert run.kept_at == [0]
    assert run.restored == 1
    assert "so the SFT model is kept" in run.warnings[-1]
    assert "kl_coef" in run.warnings[-1]


def test_without_held_out_prompts_the_last_policy_is_kept() -> None:
    run = follow(ppo(), World(held_out=False), [moment([0.0] * 4)])
    assert (run.kept_at, run.restored) == ([], 0)
    assert run.warnings == [NO_HELD_OUT]


def test_kl_ceiling_warns_at_half_and_stops_before_training_on_the_rollout() -> None:
    plan = [moment([1.0] * 4, kl=kl) for kl in (0.0, 4.9, 5.1, 10.1)]
    run = follow(ppo(rollouts=9, kl_ceiling=10), World(), plan)
    assert run.step == 3
    assert run.state["stopped"] == "KL"
    advice = "(kl_ceiling 10). Raise kl_coef, or lower learning_rate"
    assert run.warnings[:2] == [
        f"more than half of a stopping limit reached after rollout 2: KL is 5.1 nats per response {advice}",
        f"training stopped after rollout 3: KL is 10.1 nats per response {advice}",
    ]
    # The policy at the stop is also measured, once.
    assert "held_out_score" in run.reports[-1]
    assert len(run.reports) == 4


@pytest.mark.parametrize(("tokens", "stops"), [(7, False), (9, True), (2, False), (1, False)])
def test_length_drift_warns_and_stops(tokens: int, stops: bool) -> None:
    """Responses start with two tokens. A factor of more than four stops, and a factor of two is half of the limit."""
    run = World(held_out=False)
    batches = ppo(length_drift=4).batches(run)
    next(batches)
    run.step += 1
    run.lengthen(tokens)
    assert (next(batches, None) is None) == stops
    warnings_seen = [warning for warning in run.warnings if warning != NO_HELD_OUT]
    if tokens == 2:
        assert warnings_seen == []
    elif stops:
        assert warnings_seen[0].startswith(
            "training stopped after rollout 1: responses have 9.0 tokens, those of the SFT model 2.0"
        )
    elif tokens == 7:
        assert warnings_seen[0].startswith(
            "more than half of a stopping limit reached after rollout 1: responses have 7.0 tokens"
        )


def test_length_drift_limit_can_be_disabled() -> None:
    run = World(held_out=False)
    batches = ppo(length_drift=None).batches(run)
    next(batches)
    run.step += 1
    run.lengthen(50)
    assert next(batches, None) is not None
    assert run.warnings == []


def gamed(scores: list[float], measures: list[list[float]], **settings: Any) -> World:
    return follow(ppo(**settings), World(), [moment(m, score=s) for s, m in zip(scores, measures, strict=True)])


def test_rising_score_with_falling_held_out_measure_stops() -> None:
    """The measure falls from its best by 1, 1.2, 0.8 and 1 (mean 1, standard error 0.08). The score rises."""
    before, after = [2.0, 3.0, 4.0, 5.0], [1.0, 1.8, 3.2, 4.0]
    run = gamed([0.0, 1.0, 5.0], [[0.0] * 4, before, after], rollouts=9)
    assert run.state["stopped"] == "held-out measure"
    assert run.step == 2
    assert run.warnings[0].startswith(
        "training stopped after rollout 2: the score rose from 1.00 to 5.00 while the held-out measure fell from "
        "3.50 to 2.50. Raise kl_coef"
    )
    assert run.kept_at == [0, 1]


@pytest.mark.parametrize(
    ("score", "after"),
    [
        (0.5, [1.0, 1.8, 3.2, 4.0]),  # the score has fallen too, so nothing is gamed
        (5.0, [4.0, 1.5, 5.0, 3.4]),  # a fall of 0.025 on average, which is chance
        (5.0, [2.0, 3.0, 4.0, 5.0]),  # no fall
    ],
)
def test_training_continues_without_reward_hacking(score: float, after: list[float]) -> None:
    run = gamed([0.0, 1.0, score], [[0.0] * 4, [2.0, 3.0, 4.0, 5.0], after])
    assert "stopped" not in run.state
    assert run.step == 4
    assert run.warnings == []


def test_custom_held_out_measure_decides() -> None:
    """The reward model prefers each later policy. The evaluator prefers the second one."""
    run = World()
    run.judgments = [[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0], [0.0] * 4]
    objective = ppo(held_out_measure={"name": "wordlist", "wanted": ["kind"]})
    follow(objective, run, [moment([float(i)] * 4) for i in range(5)])
    assert run.kept_at == [0, 1]
    assert [report["held_out_measure"] for report in run.reports] == [0.0, 0.75, 0.5, 0.5, 0.0]
    assert [report["held_out_score"] for report in run.reports] == [0, 1, 2, 3, 4]


def test_a_finished_training_is_only_restored() -> None:
    run = follow(ppo(), World(), [moment([0.0] * 4), moment([1.0] * 4)])
    reports, warnings = len(run.reports), len(run.warnings)
    assert list(ppo().batches(run)) == []
    assert (len(run.reports), len(run.warnings), run.restored) == (reports, warnings, 2)
