"""The training loop: exact sums, budgets, memory, faults, schedules, and errors in plugins."""

import math
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from engine import ENOUGH, naive_logps
from runs import (
    OBJECTIVES,
    Killed,
    Listener,
    World,
    demonstration_rows,
    gradients_of,
    learn,
    make_world,
    preference_rows,
    weights_of,
)
from torch import Tensor

from alignment_core.errors import PluginError, TrainingError
from alignment_core.models.generation import slot_batch
from alignment_core.models.generation.choice import choose
from alignment_core.models.passes.packing import Arrangement
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import AlignmentOptimizer, LossOutput, MicroBatch, Needs, StepBatch
from alignment_core.stages.sft import SFT
from alignment_core.training.loop import has_diverged, learning_rate_factor
from alignment_core.training.rows import Rows
from alignment_core.training.run import Run
from alignment_plugins.ppo import PPO


@pytest.fixture(scope="module")
def world(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tiny_model, tmp_path_factory.mktemp("world"))


def test_gradient_is_of_the_mean_over_all_tokens_of_the_step(world: World, tmp_path: Path) -> None:
    """Compare with one backward pass through the model's logits of all rows, for several micro-batch sizes."""
    rows = [row for row in demonstration_rows(9) if row.sequences["demonstration"].mask is None]
    found = [row.sequences["demonstration"] for row in rows]
    for budget in (1, 60, ENOUGH):
        run = world.open("sft", budget=budget, rows=Rows(demonstrations=rows))
        learn(SFT(batch_size=9, max_grad_norm=1e9), run, tmp_path / str(budget))
        fresh = world.open("sft")
        with fresh.roles.use("policy"):
            loss = -naive_logps(fresh.roles.model, found).sum() / sum(len(s.completion) for s in found)
        loss.backward()  # type: ignore[no-untyped-call]
        assert run.history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
        for name, gradient in gradients_of(fresh).items():
            torch.testing.assert_close(gradients_of(run)[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_token_budget_does_not_change_the_result(world: World, tmp_path: Path, kind: str) -> None:
    """Compare losses, metrics and weights. Three budgets give one, a few and many micro-batches per step."""
    runs = []
    for budget in (ENOUGH, 130, 1):
        progress = Listener()
        objective = OBJECTIVES[kind]()
        run = learn(objective, world.open(kind, budget=budget, progress=progress), tmp_path / str(budget))
        runs.append((run, progress.looks))
    (whole, few), *others = runs
    assert any(looks > few for _, looks in others)
    for run, _ in others:
        assert len(run.history) == len(whole.history)
        for ours, theirs in zip(run.history, whole.history, strict=True):
            assert ours.keys() == theirs.keys()
            for name in ours:
                # Rounding grows over ten steps of Adam. A row counted twice would be off by tenths.
                assert ours[name] == pytest.approx(theirs[name], rel=2e-3, abs=2e-3), name
        for name, weight in weights_of(whole).items():
            torch.testing.assert_close(weights_of(run)[name], weight, rtol=0, atol=5e-3)


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("failing_call", [1, 5])
def test_out_of_memory_halves_the_budget_and_keeps_the_result(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, failing_call: int
) -> None:
    calm = learn(OBJECTIVES[kind](), world.open(kind), tmp_path / "calm")
    calls: list[int] = []
    hidden = Roles.hidden

    def failing(self: Roles, role: str, arrangement: Arrangement) -> Tensor:
        calls.append(1)
        if len(calls) == failing_call:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hidden(self, role, arrangement)

    monkeypatch.setattr(Roles, "hidden", failing)
    progress = Listener()
    run = learn(OBJECTIVES[kind](), world.open(kind, budget=1000, progress=progress), tmp_path / "hit")
    assert run.budget.tokens == 500
    assert run.warnings == progress.warnings == ["out of memory: token_budget is now 500", *calm.warnings]
    assert len(run.history) == len(calm.history)
    for ours, theirs in zip(run.history, calm.history, strict=True):
        for name in ours:
            assert ours[name] == pytest.approx(theirs[name], rel=2e-3, abs=2e-3), name


@pytest.mark.parametrize("failing_token", [1, 4, 11])
def test_out_of_memory_while_sampling_does_not_change_training(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_token: int
) -> None:
    """Fail at the first token, a middle one and one of a later rollout: responses and training stay the same."""
    calm = learn(OBJECTIVES["ppo"](), world.open("ppo"), tmp_path / "calm")
    tokens: list[int] = []

    def failing(*inputs: Any) -> Tensor:
        tokens.append(1)
        if len(tokens) == failing_token:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return choose(*inputs)

    monkeypatch.setattr(slot_batch, "choose", failing)
    run = learn(OBJECTIVES["ppo"](), world.open("ppo", budget=1000), tmp_path / "hit")
    assert run.budget.tokens == 500
    assert run.warnings == ["out of memory: token_budget is now 500", *calm.warnings]
    assert len(run.history) == len(calm.history)
    for ours, theirs in zip(run.history, calm.history, strict=True):
        for name in ours:
            assert ours[name] == pytest.approx(theirs[name], rel=2e-3, abs=2e-3), name


def test_out_of_memory_in_backward_counts_no_gradient_twice(world: World, tmp_path: Path) -> None:
    """The second micro-batch fails in its backward, and the accumulated gradient is discarded."""

    class Fragile(SFT):
        failed: ClassVar[list[int]] = []

        def loss(self, run: Run, micro: MicroBatch) -> LossOutput:
            output = super().loss(run, micro)
            self.failed.append(1)
            if len(self.failed) == 2:
                output.loss.register_hook(lambda _: _out_of_memory())
            return output

    settings = {"batch_size": 10, "learning_rate": 1e-2, "max_grad_norm": 1e9}
    calm = learn(SFT(**settings), world.open("sft"), tmp_path / "calm")
    hit = learn(Fragile(**settings), world.open("sft", budget=130), tmp_path / "hit")
    assert hit.budget.tokens == 65
    for name, gradient in gradients_of(calm).items():
        torch.testing.assert_close(gradients_of(hit)[name], gradient, rtol=1e-3, atol=1e-5)


def test_micro_batch_is_freed_before_the_next_is_computed(world: World, tmp_path: Path) -> None:
    """Otherwise its graph would fragment the memory that its activations free."""
    left: list[weakref.ref[Tensor]] = []

    class Watched(SFT):
        def loss(self, run: Run, micro: MicroBatch) -> LossOutput:
            assert [loss() for loss in left] == [None] * len(left)
            output = super().loss(run, micro)
            left.append(weakref.ref(output.loss))
            return output

    run = learn(Watched(batch_size=10), world.open("sft", budget=130), tmp_path)
    assert len(left) > run.step


def _out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


class Broken(AlignmentOptimizer):
    """Trains on preferences and fails in step `at`."""

    name: Literal["broken"] = "broken"
    at: int = 3
    fault: str = "nan"

    def needs(self) -> Needs:
        return Needs(preferences=True)

    def batches(self, run: Any) -> Iterator[StepBatch]:
        for rows in run.shuffled(run.preferences, self.batch_size, self.epochs):
            yield StepBatch([] if self.fault == "empty" else rows)

    def loss(self, run: Any, micro: MicroBatch) -> Any:
        logps = run.policy.logps(micro.sequences("chosen"))
        loss = -logps.sum() / micro.denominators["rows"] / 50
        if run.step + 1 == self.at:
            if self.fault == "nan":
                loss = loss * math.nan
            elif self.fault == "infinite gradient":
                loss = loss + (logps.sum() * 0).abs().sqrt()
            elif self.fault == "vector":
                return LossOutput(logps)
            elif self.fault == "constant":
                return LossOutput(loss.detach())
            elif self.fault == "tensor":
                return loss
            elif self.fault == "state":
                run.state["set"] = {1, 2}
        return LossOutput(loss, {"chosen": logps.sum() / micro.denominators["rows"]})


@pytest.mark.parametrize("fault", ["nan", "infinite gradient"])
def test_error_for_a_nonfinite_loss_names_step_and_rows(world: World, tmp_path: Path, fault: str) -> None:
    run = world.open("dpo", rows=Rows(preferences=preference_rows(8)))
    broken = Broken(fault=fault, batch_size=2, learning_rate=1e-2)
    with pytest.raises(TrainingError, match="no longer finite") as error:
        learn(broken, run, tmp_path)
    assert error.value.where == "step 3"
    assert run.step == 2
    third_batch = next(run.shuffled(run.preferences, 2, 1))
    assert re.findall(r"pair-\d+", str(error.value)) == [row.id for row in third_batch]
    # The step was not taken, so the weights are those after two good steps.
    good = world.open("dpo", rows=Rows(preferences=preference_rows(8)))
    with pytest.raises(PluginError):
        learn(Broken(fault="vector", batch_size=2, learning_rate=1e-2), good, tmp_path / "good")
    for name, weight in weights_of(good).items():
        assert torch.equal(weights_of(run)[name], weight)


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("vector", "not a differentiable scalar"),
        ("constant", "not a differentiable scalar"),
        ("tensor", "not a `LossOutput`"),
        ("empty", "step without rows"),
        ("state", "cannot be saved"),
    ],
)
def test_loss_that_violates_the_contract_is_an_error(world: World, tmp_path: Path, fault: str, what: str) -> None:
    run = world.open("dpo", rows=Rows(preferences=preference_rows(4)))
    with pytest.raises(PluginError, match=what):
        learn(Broken(fault=fault, at=1), run, tmp_path)


def test_history_holds_the_metrics_of_the_plugin_and_of_the_loop(world: World, tmp_path: Path) -> None:
    progress = Listener()
    run = learn(
        Broken(at=99, batch_size=2),
        world.open("dpo", rows=Rows(preferences=preference_rows(4)), progress=progress),
        tmp_path,
    )
    for i, entry in enumerate(run.history):
        assert entry["step"] == i + 1
        # The loss is minus one fiftieth of the reported `chosen`.
        assert entry["loss"] == pytest.approx(-entry["chosen"] / 50, rel=1e-5)
        assert set(entry) == {"step", "loss", "chosen", "grad_norm", "learning_rate"}
    assert [(done, total) for done, total, _ in progress.steps] == [(1, 2), (2, 2)]
    assert run.metrics == {name: value for name, value in run.history[-1].items() if name != "step"}


def test_everything_in_the_history_is_told_while_it_happens(world: World, tmp_path: Path) -> None:
    progress = Listener()
    run = learn(OBJECTIVES["ppo"](), world.open("ppo", progress=progress), tmp_path)
    told = [{"step": done, **metrics} for done, _, metrics in progress.steps]
    assert told == run.history
    assert any("score" in entry for entry in told), "a rollout"
    assert any("loss" in entry for entry in told), "a step"
    assert {total for _, total, _ in progress.steps} == {run.total}


def test_gradients_are_clipped_to_the_maximum_norm(world: World, tmp_path: Path) -> None:
    run = learn(SFT(batch_size=10, max_grad_norm=0.01), world.open("sft"), tmp_path)
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients_of(run).values()))
    assert norm == pytest.approx(0.01, rel=1e-3)
    assert run.history[0]["grad_norm"] > 0.1


def test_step_matches_adamw(world: World, tmp_path: Path) -> None:
    """One step by hand: w·(1 - lr·decay) - lr·g/(|g| + 1e-8), as the bias-corrected first moments are g and g²."""
    run = world.open("sft")
    before = weights_of(run)
    settings = {"learning_rate": 0.01, "weight_decay": 0.1, "schedule": "constant", "warmup_fraction": 0}
    learn(SFT(batch_size=10, max_grad_norm=1e9, **settings), run, tmp_path)
    for name, gradient in gradients_of(run).items():
        expected = before[name] * (1 - 0.01 * 0.1) - 0.01 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(weights_of(run)[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # Ten steps, two of them warm-up. After warm-up, the completed share is 0, 1/8, … 7/8.
        ("constant", [0.5, 1.0, *[1.0] * 8]),
        ("linear", [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        # 0.1 + 0.9 (1 + cos(pi s)) / 2 at s = 0, 1/8, 1/4, 3/8, 1/2, …
        ("cosine", [0.5, 1.0, 1.0, 0.965746, 0.868198, 0.722208, 0.55, 0.377792, 0.231802, 0.134254]),
    ],
)
def test_schedules_by_hand(schedule: str, expected: list[float]) -> None:
    found = [learning_rate_factor(i, 10, schedule=schedule, warmup_fraction=0.2) for i in range(10)]
    assert found == pytest.approx(expected, abs=1e-6)


def test_schedules_beyond_their_end_stay_at_their_floor() -> None:
    floors = {"constant": 1.0, "linear": 0.0, "cosine": 0.1}
    for schedule, floor in floors.items():
        assert learning_rate_factor(15, 10, schedule=schedule, warmup_fraction=0) == pytest.approx(floor)
    assert learning_rate_factor(0, 1, schedule="cosine", warmup_fraction=0.1) == 1.0


def test_learning_rate_of_each_step_follows_the_schedule(world: World, tmp_path: Path) -> None:
    objective = SFT(batch_size=2, epochs=2, learning_rate=0.01, schedule="linear", warmup_fraction=0.2)
    run = learn(objective, world.open("sft"), tmp_path)
    rates = [entry["learning_rate"] for entry in run.history]
    assert rates == pytest.approx([0.01 * f for f in [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]])


def test_error_for_a_diverging_loss_names_step_and_rows(world: World, tmp_path: Path) -> None:
    """Take twelve steps of an objective whose loss grows tenfold per step from the seventh step."""

    class Growing(SFT):
        def loss(self, run: Run, micro: MicroBatch) -> LossOutput:
            output = super().loss(run, micro)
            return LossOutput(output.loss * 0 + 10.0 ** max(0, run.step - 5))

    settings = {"batch_size": 5, "epochs": 6}
    run = world.open("sft")
    with pytest.raises(TrainingError, match="diverges") as error:
        learn(Growing(**settings), run, tmp_path / "one")
    # By hand: the first five losses are 1, so the limit is 4 · 2 = 8; steps 6 to 10 are 1, 10, 100, 1000, 10000.
    assert error.value.where == "step 10"
    order = list(world.open("sft").shuffled(run.demonstrations, 5, 6))
    assert re.findall(r"demonstration-\d+", str(error.value)) == [row.id for row in order[9]]
    assert run.step == 9
    calm = world.open("sft")
    assert learn(Growing(**settings, max_loss_growth=None), calm, tmp_path / "two").step == 12


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([1.0] * 5 + [8.0] * 5, False),
        ([1.0] * 5 + [8.1] * 5, True),
        ([1.0] * 5 + [-8.1] * 5, True),
        ([-1.0] * 5 + [7.9] * 5, False),
        # One outlier of 36 has a mean of 8 over five steps.
        ([1.0] * 5 + [1.0, 1.0, 36.0, 1.0, 1.0], False),
        ([1.0] * 4 + [1e9] * 5, False),
        ([1.0] * 50 + [9.0] * 5, True),
    ],
)
def test_divergence_by_hand(losses: list[float], diverged: bool) -> None:
    assert has_diverged(losses, 4.0) is diverged
    assert not has_diverged(losses, None)


def test_resumed_training_remembers_its_first_losses(world: World, tmp_path: Path) -> None:
    class Jumping(SFT):
        def loss(self, run: Run, micro: MicroBatch) -> LossOutput:
            return LossOutput(super().loss(run, micro).loss * 0 + (1.0 if run.step < 6 else 50.0))

    objective = Jumping(batch_size=5, epochs=6)
    with pytest.raises(Killed):
        learn(objective, world.open("sft", progress=Listener(kill_after_step=8)), tmp_path, every=0)
    with pytest.raises(TrainingError, match="diverges") as error:
        learn(objective, world.open("sft"), tmp_path)
    assert error.value.where == "step 10"


def test_each_role_is_clipped_separately(world: World, tmp_path: Path) -> None:
    """A value loss 1000 times as large does not scale the policy's gradient."""
    norms, gradients = [], []
    for weight in (0.5, 500.0):
        objective = PPO(
            rollouts=1,
            rollout_size=4,
            batch_size=4,
            epochs=1,
            max_new_tokens=5,
            value_weight=weight,
            max_grad_norm=0.01,
        )
        run = learn(objective, world.open("ppo"), tmp_path / str(weight))
        entry = next(entry for entry in run.history if "loss" in entry)
        norms.append((entry["grad_norm"], entry["grad_norm_value"]))
        gradients.append({name: g.clone() for name, g in gradients_of(run).items() if ".policy." in name})
        for role, parameters in run.roles.parameters_by_role().items():
            assert parameters, role
            norm = math.sqrt(sum(float((p.grad**2).sum()) for p in parameters))
            assert norm == pytest.approx(0.01, rel=1e-3)
    (policy, value), (same_policy, larger_value) = norms
    assert same_policy == pytest.approx(policy, rel=1e-4)
    assert larger_value == pytest.approx(1000 * value, rel=1e-3)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_every_trained_weight_belongs_to_one_role(world: World) -> None:
    run = world.open("ppo")
    owned = [id(p) for parameters in run.roles.parameters_by_role().values() for p in parameters]
    assert sorted(owned) == sorted(id(p) for p in run.roles.parameters().values())
    assert run.roles.head_of("value").weight in set(run.roles.parameters_by_role()["value"])
