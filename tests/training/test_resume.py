"""Stopped or killed anywhere, a run goes on from its checkpoint and ends bit-identical to an unbroken one."""

import errno
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import OBJECTIVES, STEPS, Killed, Listener, World, feedback_rows, learn, make_world, weights_of
from safetensors import SafetensorError
from torch.optim.optimizer import register_optimizer_step_pre_hook

from alignment_core.config import LoraConfig
from alignment_core.errors import PluginError, TrainingError
from alignment_core.models.roles import Roles
from alignment_core.progress import Stopped
from alignment_core.stages.sft import SFT
from alignment_core.training import checkpoint
from alignment_core.training.checkpoint import Snapshot, load_checkpoint, save_checkpoint
from alignment_core.training.loop import Objective
from alignment_core.training.run import Rows, Run
from alignment_plugins.dpo import DPO
from alignment_plugins.kto import KTO
from alignment_plugins.ppo import PPO


@pytest.fixture(scope="module")
def world(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tiny_model, tmp_path_factory.mktemp("world"))


def same_end(run: Run, unbroken: Run) -> None:
    """To the last bit, with one history and every warning once."""
    assert run.step == unbroken.step
    assert run.history == unbroken.history
    assert run.warnings == unbroken.warnings
    for name, weight in weights_of(unbroken).items():
        assert torch.equal(weights_of(run)[name], weight), name


def losses(run: Run) -> list[float]:
    """The loss of every step."""
    return [entry["loss"] for entry in run.history if "loss" in entry]


def live(
    world: World, kind: str, objective: Objective, folder: Path, listener: Listener, every: float = 1e9, **open_: Any
) -> Run | None:
    """One life of the process, with random generators as a new process has them; None if it was cut short."""
    torch.manual_seed(random.randrange(2**31))
    run = world.open(kind, progress=listener, **open_)
    try:
        return learn(objective, run, folder, every=every)
    except (Stopped, Killed):
        return None


Case = tuple[str, Callable[[], Objective]]
CASES: dict[str, Case] = {kind: (kind, objective) for kind, objective in OBJECTIVES.items()}
# Passes end early by the KL of a step: whether they do must not depend on where the run was broken.
CASES["ppo with step_kl"] = (
    "ppo",
    lambda: PPO(
        learning_rate=2e-2, batch_size=2, epochs=3, rollouts=3, rollout_size=6, max_new_tokens=5, step_kl=0.3,
        kl_ceiling=1e6,
    ),
)  # fmt: skip


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A kind of run, its objective, and how it ends when nobody breaks it."""
    kind, objective = CASES[request.param]
    progress = Listener()
    unbroken = live(world, kind, objective(), tmp_path_factory.mktemp("unbroken"), progress, budget=130)
    assert unbroken is not None
    return kind, objective, unbroken, progress.looks


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8])
def test_a_stop_anywhere_costs_nothing(world: World, tmp_path: Path, case: Any, share: float) -> None:
    kind, objective, unbroken, looks = case
    stop_at = 1 + round(share * (looks - 1))
    assert live(world, kind, objective(), tmp_path, Listener(stop_at=stop_at), budget=130) is None
    second = Listener()
    resumed = live(world, kind, objective(), tmp_path, second, budget=130)
    assert resumed is not None
    same_end(resumed, unbroken)
    assert len(second.logs) == 1
    assert second.logs[0].startswith("resumed after step ")


def test_many_lives_end_as_one(world: World, tmp_path: Path, case: Any) -> None:
    """Each life looks a random number of times before it is asked to stop."""
    kind, objective, unbroken, looks = case
    rng = random.Random(1)
    for _ in range(100):
        # A rollout has to be finished within one life, so each is at least as long as one.
        patience = rng.randint(looks // 4, looks // 3) + 3
        if (run := live(world, kind, objective(), tmp_path, Listener(stop_at=patience), budget=130)) is not None:
            break
    assert run is not None
    same_end(run, unbroken)


def test_a_kill_loses_what_came_after_the_checkpoint(world: World, tmp_path: Path, case: Any) -> None:
    kind, objective, unbroken, _ = case
    dying = Listener(kill_after_step=3)
    assert live(world, kind, objective(), tmp_path, dying, every=0, budget=130) is None
    second = Listener()
    resumed = live(world, kind, objective(), tmp_path, second, every=0, budget=130)
    assert resumed is not None
    same_end(resumed, unbroken)
    # The step that it died in was not saved yet.
    assert second.steps[0][0] == 3


def test_a_finished_run_is_not_trained_again(world: World, tmp_path: Path, case: Any) -> None:
    kind, objective, unbroken, _ = case
    assert live(world, kind, objective(), tmp_path, Listener(), budget=130) is not None
    again = Listener()
    run = live(world, kind, objective(), tmp_path, again, budget=130)
    assert run is not None
    assert again.steps == []
    same_end(run, unbroken)


def test_history_counts_every_step_once(case: Any) -> None:
    _, _, unbroken, _ = case
    steps = [entry["step"] for entry in unbroken.history if "loss" in entry]
    assert steps == list(range(1, unbroken.step + 1))
    reports = [entry["step"] for entry in unbroken.history if "loss" not in entry]
    assert reports == sorted(set(reports))


def test_step_kl_ends_the_passes_early_in_these_tests(world: World, tmp_path: Path) -> None:
    """Otherwise the case above would prove nothing: some passes end early, and not each after its first step."""
    objective = CASES["ppo with step_kl"][1]()
    run = live(world, "ppo", objective, tmp_path, Listener())
    assert run is not None
    assert 3 < run.step < objective.total_steps(run)


@pytest.mark.parametrize("kind", ["sft", "dpo", "ppo"])
def test_dropout_goes_on_where_it_stopped(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    lora = LoraConfig(rank=4, alpha=8, dropout=0.3)
    world = make_world(tiny_model, tmp_path / "world", lora)
    progress = Listener()
    unbroken = live(world, kind, OBJECTIVES[kind](), tmp_path / "unbroken", progress, budget=130)
    assert unbroken is not None
    assert (
        live(world, kind, OBJECTIVES[kind](), tmp_path / "cut", Listener(stop_at=progress.looks // 2), budget=130)
        is None
    )
    resumed = live(world, kind, OBJECTIVES[kind](), tmp_path / "cut", Listener(), budget=130)
    assert resumed is not None
    same_end(resumed, unbroken)
    without = live(make_world(tiny_model, tmp_path / "dry"), kind, OBJECTIVES[kind](), tmp_path / "dry-run", Listener())
    assert without is not None
    assert losses(without)[-1] != losses(unbroken)[-1]


def test_a_halved_budget_stays_halved(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the resumed run would cut its batches otherwise than the unbroken one did, and round otherwise."""
    hidden, failing = Roles.hidden, [True]

    def fail_once(self: Roles, *args: Any) -> Any:
        if failing and failing.pop():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hidden(self, *args)

    monkeypatch.setattr(Roles, "hidden", fail_once)
    assert live(world, "dpo", OBJECTIVES["dpo"](), tmp_path, Listener(stop_at=4), budget=260) is None
    resumed = live(world, "dpo", OBJECTIVES["dpo"](), tmp_path, Listener(), budget=260)
    unbroken = live(world, "dpo", OBJECTIVES["dpo"](), tmp_path / "unbroken", Listener(), budget=130)
    assert resumed is not None
    assert unbroken is not None
    assert resumed.budget.tokens == 130
    assert resumed.warnings == ["out of memory: token_budget is now 130"]
    assert resumed.history == unbroken.history


def test_a_warning_is_not_given_again_after_a_stop(world: World, tmp_path: Path) -> None:
    rows = Rows(feedback=feedback_rows(11, 1))
    first, second = Listener(stop_at=2), Listener()
    assert live(world, "kto", KTO(**STEPS), tmp_path, first, rows=rows) is None
    resumed = live(world, "kto", KTO(**STEPS), tmp_path, second, rows=rows)
    assert resumed is not None
    assert len(first.warnings) == len(resumed.warnings) == 1
    assert second.warnings == []


def test_training_that_stopped_at_the_kl_ceiling_stays_stopped(world: World, tmp_path: Path) -> None:
    settings = {"rollouts": 3, "rollout_size": 4, "batch_size": 4, "epochs": 1, "max_new_tokens": 4}
    objective = PPO(**settings, kl_ceiling=1e-9, learning_rate=1e-2)
    run = live(world, "ppo", objective, tmp_path, Listener())
    assert run is not None
    # The first rollout comes from the reference itself; the second is over the ceiling, and nothing is learned from it.
    assert run.step == 1
    assert "kl_ceiling" in run.warnings[0]
    again = Listener()
    assert live(world, "ppo", objective, tmp_path, again) is not None
    assert again.steps == []


# --- the files -----------------------------------------------------------------------------------------------------


def snapshot(step: int, **state: Any) -> Snapshot:
    return Snapshot(step, 4096, state, {"loss": 0.1 + step}, [{"step": step, "loss": 0.1 + step}], ["a warning"])


def weights_and_optimizer(value: float) -> tuple[dict[str, torch.nn.Parameter], torch.optim.AdamW]:
    weights = {"model.a.b": torch.nn.Parameter(torch.full((3,), value)), "heads.c": torch.nn.Parameter(torch.zeros(2))}
    return weights, torch.optim.AdamW(weights.values(), lr=0.1)


def test_a_checkpoint_gives_back_what_went_in(tmp_path: Path) -> None:
    weights, optimizer = weights_and_optimizer(1.5)
    weights["model.a.b"].grad = torch.tensor([0.3, -0.1, 0.2])
    optimizer.step()
    table = torch.arange(6.0).reshape(2, 3)
    kept = {"model.a.b": torch.full((3,), 9.0), "heads.c": torch.ones(2)}
    saved = snapshot(7, table=table, part=table[0], nested={"kl": 0.1 + 0.2, "rows": [1, None, "x"]})
    saved.kept = kept
    save_checkpoint(tmp_path, saved, weights, optimizer)
    others, other_optimizer = weights_and_optimizer(0.0)
    loaded = load_checkpoint(tmp_path, others, other_optimizer, pytest.fail)
    assert loaded is not None
    assert torch.equal(loaded.state.pop("table"), table)
    assert torch.equal(loaded.state.pop("part"), table[0])
    assert loaded.state == {"nested": {"kl": 0.1 + 0.2, "rows": [1, None, "x"]}}
    assert (loaded.step, loaded.budget, loaded.warnings) == (7, 4096, ["a warning"])
    assert (loaded.metrics, loaded.history) == (saved.metrics, saved.history)
    assert torch.equal(others["model.a.b"], weights["model.a.b"])
    assert loaded.kept.keys() == kept.keys()
    assert all(torch.equal(loaded.kept[name], value) for name, value in kept.items())
    for moment in ("step", "exp_avg", "exp_avg_sq"):
        assert torch.equal(
            other_optimizer.state[others["model.a.b"]][moment], optimizer.state[weights["model.a.b"]][moment]
        )
    # The head had no gradient yet, so there is nothing of it to remember.
    assert other_optimizer.state.get(others["heads.c"], {}) == {}


def test_the_newest_two_are_kept_and_a_stop_in_the_same_step_overwrites_nothing(tmp_path: Path) -> None:
    weights, optimizer = weights_and_optimizer(1.0)
    for step in (9, 10, 10, 11):
        save_checkpoint(tmp_path, snapshot(step), weights, optimizer)
        assert 1 <= len(list(tmp_path.iterdir())) <= 2
    kept = [json.loads((path / "snapshot.json").read_text())["step"] for path in sorted(tmp_path.iterdir())]
    assert kept == [10, 11]
    for _ in range(12):
        save_checkpoint(tmp_path, snapshot(12), weights, optimizer)
    loaded = load_checkpoint(tmp_path, weights, optimizer, pytest.fail)
    assert loaded is not None
    assert loaded.step == 12


@pytest.mark.parametrize("moment", ["before the weights", "before the name", "before the old ones go"])
def test_a_death_while_saving_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    weights, optimizer = weights_and_optimizer(1.0)
    save_checkpoint(tmp_path, snapshot(1), weights, optimizer)
    save_checkpoint(tmp_path, snapshot(2), weights, optimizer)

    def die(*args: Any, **kwargs: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "before the weights":
            patch.setattr(checkpoint, "save_tensors", die)
        elif moment == "before the name":
            patch.setattr(Path, "rename", die)
        else:
            patch.setattr(checkpoint.shutil, "rmtree", lambda path, **_: die() if "00000001" in str(path) else None)
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, snapshot(3), weights, optimizer)
    loaded = load_checkpoint(tmp_path, weights, optimizer, pytest.fail)
    assert loaded is not None
    assert loaded.step == (3 if moment == "before the old ones go" else 2)
    save_checkpoint(tmp_path, snapshot(4), weights, optimizer)
    assert len([path for path in tmp_path.iterdir() if not path.name.startswith(".")]) == 2


def test_a_full_disk_is_the_systems_error_whoever_meets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors 0.8.0 says it so: in an error of its own, with the system's number in its words alone."""

    def fail(*args: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    weights, optimizer = weights_and_optimizer(1.0)
    save_checkpoint(tmp_path, snapshot(1), weights, optimizer)
    with monkeypatch.context() as patch:
        patch.setattr("alignment_core.models.saving.save_file", fail)
        with pytest.raises(OSError, match="No space left on device") as caught:
            save_checkpoint(tmp_path, snapshot(2), weights, optimizer)
    assert (caught.value.errno, Path(caught.value.filename).name) == (errno.ENOSPC, "tensors.safetensors")
    loaded = load_checkpoint(tmp_path, weights, optimizer, pytest.fail)
    assert loaded is not None
    assert loaded.step == 1


@pytest.mark.parametrize(
    ("adamw", "remedy"), [("32bit", "Set `adamw: paged_8bit`"), ("paged_8bit", "Lower `model.lora")]
)
def test_memory_that_ends_in_adamw_half_takes_no_step(world: World, tmp_path: Path, adamw: Any, remedy: str) -> None:
    """The third step's first weight has moved when memory ends; a run with enough of it ends as an unbroken one."""
    objective = DPO(**STEPS, adamw=adamw)
    unbroken = live(world, "dpo", objective, tmp_path / "unbroken", Listener())
    assert unbroken is not None
    run = world.open("dpo")
    weights = list(run.roles.parameters().values())

    def half(*_: Any) -> None:
        if run.step == 2:
            weights[0].data += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = register_optimizer_step_pre_hook(half)
    try:
        with pytest.raises(TrainingError, match="out of memory while AdamW makes its step") as error:
            learn(objective, run, tmp_path / "hit", every=0)
    finally:
        handle.remove()
    assert error.value.where == "step 3"
    assert str(error.value.do).startswith(remedy)
    listener = Listener()
    again = live(world, "dpo", objective, tmp_path / "hit", listener)
    assert "resumed after step 2" in listener.logs
    assert again is not None
    same_end(again, unbroken)


def test_memory_that_ends_in_an_optimizers_own_work_is_told(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In `batches`, outside of every pass, as the CPU's allocator tells it."""

    def greedy(*_: Any) -> Any:
        return torch.empty(2**50)

    monkeypatch.setattr(Run, "shuffled", greedy)
    with pytest.raises(TrainingError, match="out of memory while a step's batch is made") as error:
        learn(DPO(**STEPS), world.open("dpo"), tmp_path)
    assert (error.value.where, "batch_size" in str(error.value.do)) == ("step 1", True)


FILES = ("tensors.safetensors", "snapshot.json", "digests.json")


def flip_a_bit(path: Path, seed: int) -> None:
    """What a failing disk or memory does."""
    content, rng = bytearray(path.read_bytes()), random.Random(seed)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def tear(path: Path, seed: int) -> None:
    """What a file system may leave of a file that was written just before the power went."""
    os.truncate(path, path.stat().st_size * seed // 10)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip_a_bit, tear, lambda path, _: path.unlink()], ids=["flipped", "torn", "lost"])
def test_a_damaged_checkpoint_is_told_of_and_the_one_before_is_used(tmp_path: Path, damage: Any, name: str) -> None:
    weights, optimizer = weights_and_optimizer(1.0)
    for seed in range(5):
        for step in (1, 2):
            save_checkpoint(tmp_path, snapshot(step), weights, optimizer)
        damage(max(tmp_path.iterdir()) / name, seed)
        told: list[str] = []
        loaded = load_checkpoint(tmp_path, weights, optimizer, told.append)
        assert loaded is not None
        assert (loaded.step, loaded.metrics) == (1, {"loss": 1.1})
        assert len(told) == 1
        assert "is damaged" in told[0]
        assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_run_whose_checkpoints_are_damaged_ends_as_an_unbroken_one(
    world: World, tmp_path: Path, damaged: int
) -> None:
    unbroken = live(world, "dpo", OBJECTIVES["dpo"](), tmp_path / "unbroken", Listener())
    assert unbroken is not None
    broken = tmp_path / "broken"
    assert live(world, "dpo", OBJECTIVES["dpo"](), broken, Listener(kill_after_step=4), every=0) is None
    for path in sorted(broken.iterdir())[-damaged:]:
        flip_a_bit(path / "tensors.safetensors", damaged)
    second = Listener()
    resumed = live(world, "dpo", OBJECTIVES["dpo"](), broken, second, every=0)
    assert resumed is not None
    same_end(resumed, unbroken)
    assert len(second.warnings) == damaged
    # Of the steps 2 and 3 that were saved, the newest that is whole is gone on from; else the start.
    assert second.steps[0][0] == (3 if damaged == 1 else 1)


def test_a_state_that_json_cannot_hold_is_the_plugins_fault(tmp_path: Path) -> None:
    weights, optimizer = weights_and_optimizer(1.0)
    with pytest.raises(PluginError, match="cannot be saved"):
        save_checkpoint(tmp_path, snapshot(1, rows={"a": torch.zeros(2)}), weights, optimizer)


def test_objectives_of_these_tests_learn(world: World, tmp_path: Path) -> None:
    """A run that changes nothing would resume perfectly."""
    for kind, objective in {"sft": SFT(**STEPS), "dpo": DPO(**STEPS)}.items():
        before = weights_of(world.open(kind))
        after = weights_of(learn(objective, world.open(kind), tmp_path / kind))
        assert all(not torch.equal(before[name], after[name]) for name in before)


class Wanders(DPO):
    """Keeps the weights of its second step and ends with them, whatever it learned after that."""

    def batches(self, run: Any) -> Any:
        for batch in super().batches(run):
            if run.step == 2 and not run.state.get("kept"):
                run.keep()
                run.state["kept"] = True
            yield batch
        run.restore()


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 5, 6])
def test_kept_weights_outlive_a_stop(world: World, tmp_path: Path, stop_at: int) -> None:
    plain = live(world, "dpo", DPO(**STEPS, schedule="constant"), tmp_path / "plain", Listener())
    assert plain is not None
    objective = Wanders(**STEPS, schedule="constant")
    unbroken = live(world, "dpo", objective, tmp_path / "unbroken", Listener())
    assert unbroken is not None
    live(world, "dpo", objective, tmp_path / "cut", Listener(stop_at=stop_at * 2))
    resumed = live(world, "dpo", objective, tmp_path / "cut", Listener())
    assert resumed is not None
    same_end(resumed, unbroken)
    assert resumed.step == plain.step > 2
    assert any(not torch.equal(weights_of(resumed)[name], weight) for name, weight in weights_of(plain).items())
