"""A run stopped or killed anywhere resumes from its checkpoint and ends bit-identical to an uninterrupted one."""

import errno
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import (
    GROUP_OBJECTIVES,
    OBJECTIVES,
    STEPS,
    Killed,
    Listener,
    World,
    feedback_rows,
    learn,
    make_world,
    weights_of,
)
from safetensors import SafetensorError
from torch.optim.optimizer import register_optimizer_step_pre_hook

from alignment_core.config import LoraConfig
from alignment_core.errors import PluginError, TrainingError
from alignment_core.models.roles.shared_base import Roles
from alignment_core.progress import Stopped
from alignment_core.stages.sft import SFT
from alignment_core.training import checkpoint
from alignment_core.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from alignment_core.training.contract import Objective
from alignment_core.training.rows import Rows
from alignment_core.training.run import Run
from alignment_plugins.dpo import DPO
from alignment_plugins.kto import KTO
from alignment_plugins.ppo import PPO


@pytest.fixture(scope="module")
def world(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tiny_model, tmp_path_factory.mktemp("world"))


def assert_same_result(run: Run, uninterrupted: Run) -> None:
    """Check that both runs are bit-identical, with one history and every warning once."""
    assert run.step == uninterrupted.step
    assert run.history == uninterrupted.history
    assert run.warnings == uninterrupted.warnings
    for name, weight in weights_of(uninterrupted).items():
        assert torch.equal(weights_of(run)[name], weight), name


def losses(run: Run) -> list[float]:
    """Return the loss of every step."""
    return [entry["loss"] for entry in run.history if "loss" in entry]


def train_once(
    world: World, kind: str, objective: Objective, folder: Path, listener: Listener, every: float = 1e9, **open_: Any
) -> Run | None:
    """Train as in a new process, with fresh random generators. Return None if training was interrupted."""
    torch.manual_seed(random.randrange(2**31))
    run = world.open(kind, progress=listener, **open_)
    try:
        return learn(objective, run, folder, every=every)
    except (Stopped, Killed):
        return None


Case = tuple[str, Callable[[], Objective]]
CASES: dict[str, Case] = {kind: (kind, objective) for kind, objective in (OBJECTIVES | GROUP_OBJECTIVES).items()}
SLOWER = ("rloo", "online_dpo")
"""Cases that differ from others only in their loss."""
# The KL of a step ends passes early. Whether it does must not depend on where the run was interrupted.
CASES["ppo with step_kl"] = (
    "ppo",
    lambda: PPO(
        learning_rate=2e-2, batch_size=2, epochs=3, rollouts=3, rollout_size=6, max_new_tokens=5, step_kl=0.3,
        kl_ceiling=1e6,
    ),
)  # fmt: skip


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.ci if name in SLOWER else []) for name in CASES]
)
def case(request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A kind of run, its objective, its uninterrupted result, and the number of checks for a stop."""
    kind, objective = CASES[request.param]
    progress = Listener()
    uninterrupted = train_once(world, kind, objective(), tmp_path_factory.mktemp("uninterrupted"), progress, budget=130)
    assert uninterrupted is not None
    return kind, objective, uninterrupted, progress.looks


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8])
def test_stop_anywhere_does_not_change_the_result(world: World, tmp_path: Path, case: Any, share: float) -> None:
    kind, objective, uninterrupted, looks = case
    stop_at = 1 + round(share * (looks - 1))
    assert train_once(world, kind, objective(), tmp_path, Listener(stop_at=stop_at), budget=130) is None
    second = Listener()
    resumed = train_once(world, kind, objective(), tmp_path, second, budget=130)
    assert resumed is not None
    assert_same_result(resumed, uninterrupted)
    assert len(second.logs) == 1
    assert second.logs[0].startswith("resumed after step ")


def test_many_interruptions_do_not_change_the_result(world: World, tmp_path: Path, case: Any) -> None:
    """Each attempt checks a random number of times before it is asked to stop."""
    kind, objective, uninterrupted, looks = case
    rng = random.Random(1)
    for _ in range(100):
        # A rollout has to finish within one attempt, so each attempt is at least that long.
        patience = rng.randint(looks // 4, looks // 3) + 3
        if (run := train_once(world, kind, objective(), tmp_path, Listener(stop_at=patience), budget=130)) is not None:
            break
    assert run is not None
    assert_same_result(run, uninterrupted)


def test_kill_loses_only_steps_after_the_checkpoint(world: World, tmp_path: Path, case: Any) -> None:
    kind, objective, uninterrupted, _ = case
    killed = Listener(kill_after_step=3)
    assert train_once(world, kind, objective(), tmp_path, killed, every=0, budget=130) is None
    second = Listener()
    resumed = train_once(world, kind, objective(), tmp_path, second, every=0, budget=130)
    assert resumed is not None
    assert_same_result(resumed, uninterrupted)
    # The step in which it was killed had not been saved yet.
    assert second.steps[0][0] == 3


def test_a_finished_run_is_not_trained_again(world: World, tmp_path: Path, case: Any) -> None:
    kind, objective, uninterrupted, _ = case
    assert train_once(world, kind, objective(), tmp_path, Listener(), budget=130) is not None
    again = Listener()
    run = train_once(world, kind, objective(), tmp_path, again, budget=130)
    assert run is not None
    assert again.steps == []
    assert_same_result(run, uninterrupted)


def test_history_counts_every_step_once(case: Any) -> None:
    _, _, uninterrupted, _ = case
    steps = [entry["step"] for entry in uninterrupted.history if "loss" in entry]
    assert steps == list(range(1, uninterrupted.step + 1))
    reports = [entry["step"] for entry in uninterrupted.history if "loss" not in entry]
    assert reports == sorted(set(reports))


def test_step_kl_ends_the_passes_early_in_these_tests(world: World, tmp_path: Path) -> None:
    """Check that the case above is meaningful: some passes end early, but not all after their first step."""
    objective = CASES["ppo with step_kl"][1]()
    run = train_once(world, "ppo", objective, tmp_path, Listener())
    assert run is not None
    assert 3 < run.step < objective.total_steps(run)


@pytest.mark.parametrize("kind", ["sft", "dpo", "ppo"])
def test_dropout_resumes_exactly(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    lora = LoraConfig(rank=4, alpha=8, dropout=0.3)
    world = make_world(tiny_model, tmp_path / "world", lora)
    progress = Listener()
    uninterrupted = train_once(world, kind, OBJECTIVES[kind](), tmp_path / "uninterrupted", progress, budget=130)
    assert uninterrupted is not None
    assert (
        train_once(world, kind, OBJECTIVES[kind](), tmp_path / "cut", Listener(stop_at=progress.looks // 2), budget=130)
        is None
    )
    resumed = train_once(world, kind, OBJECTIVES[kind](), tmp_path / "cut", Listener(), budget=130)
    assert resumed is not None
    assert_same_result(resumed, uninterrupted)
    no_dropout = train_once(
        make_world(tiny_model, tmp_path / "dry"), kind, OBJECTIVES[kind](), tmp_path / "dry-run", Listener()
    )
    assert no_dropout is not None
    assert losses(no_dropout)[-1] != losses(uninterrupted)[-1]


def test_a_halved_budget_stays_halved(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the resumed run would split its batches differently and round differently."""
    hidden, failing = Roles.hidden, [True]

    def fail_once(self: Roles, *args: Any) -> Any:
        if failing and failing.pop():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hidden(self, *args)

    monkeypatch.setattr(Roles, "hidden", fail_once)
    assert train_once(world, "dpo", OBJECTIVES["dpo"](), tmp_path, Listener(stop_at=4), budget=260) is None
    resumed = train_once(world, "dpo", OBJECTIVES["dpo"](), tmp_path, Listener(), budget=260)
    uninterrupted = train_once(world, "dpo", OBJECTIVES["dpo"](), tmp_path / "uninterrupted", Listener(), budget=130)
    assert resumed is not None
    assert uninterrupted is not None
    assert resumed.budget.tokens == 130
    assert resumed.warnings == ["out of memory: token_budget is now 130"]
    assert resumed.history == uninterrupted.history


def test_warning_is_not_repeated_after_a_stop(world: World, tmp_path: Path) -> None:
    rows = Rows(feedback=feedback_rows(11, 1))
    first, second = Listener(stop_at=2), Listener()
    assert train_once(world, "kto", KTO(**STEPS), tmp_path, first, rows=rows) is None
    resumed = train_once(world, "kto", KTO(**STEPS), tmp_path, second, rows=rows)
    assert resumed is not None
    assert len(first.warnings) == len(resumed.warnings) == 1
    assert second.warnings == []


def test_training_that_stopped_at_the_kl_ceiling_stays_stopped(world: World, tmp_path: Path) -> None:
    settings = {"rollouts": 3, "rollout_size": 4, "batch_size": 4, "epochs": 1, "max_new_tokens": 4}
    objective = PPO(**settings, kl_ceiling=1e-5, learning_rate=1e-2)
    run = train_once(world, "ppo", objective, tmp_path, Listener())
    assert run is not None
    # The first rollout comes from the reference itself, up to rounding. The second is over the ceiling and is not used.
    assert run.step == 1
    assert "kl_ceiling" in run.warnings[0]
    again = Listener()
    assert train_once(world, "ppo", objective, tmp_path, again) is not None
    assert again.steps == []


# --- checkpoint files ----------------------------------------------------------------------------------------------


def saved_state(step: int, **state: Any) -> TrainingState:
    history = [{"step": step, "loss": 0.1 + step}]
    scale = {"factor": 1024.0, "steps": step}
    return TrainingState(step, 4096, state, {"loss": 0.1 + step}, history, ["a warning"], scale, {"mean": 0.1 + step})


def weights_and_optimizer(value: float) -> tuple[dict[str, torch.nn.Parameter], torch.optim.AdamW]:
    weights = {"model.a.b": torch.nn.Parameter(torch.full((3,), value)), "heads.c": torch.nn.Parameter(torch.zeros(2))}
    return weights, torch.optim.AdamW(weights.values(), lr=0.1)


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    weights, optimizer = weights_and_optimizer(1.5)
    weights["model.a.b"].grad = torch.tensor([0.3, -0.1, 0.2])
    optimizer.step()
    table = torch.arange(6.0).reshape(2, 3)
    kept = {"model.a.b": torch.full((3,), 9.0), "heads.c": torch.ones(2)}
    saved = saved_state(7, table=table, part=table[0], nested={"kl": 0.1 + 0.2, "rows": [1, None, "x"]})
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
    assert loaded.reward_units == {"mean": 7.1}
    assert torch.equal(others["model.a.b"], weights["model.a.b"])
    assert loaded.kept.keys() == kept.keys()
    assert all(torch.equal(loaded.kept[name], value) for name, value in kept.items())
    for moment in ("step", "exp_avg", "exp_avg_sq"):
        assert torch.equal(
            other_optimizer.state[others["model.a.b"]][moment], optimizer.state[weights["model.a.b"]][moment]
        )
    # The head has had no gradient yet, so it has no optimizer state.
    assert other_optimizer.state.get(others["heads.c"], {}) == {}


def test_the_newest_two_are_kept_and_a_stop_in_the_same_step_overwrites_nothing(tmp_path: Path) -> None:
    weights, optimizer = weights_and_optimizer(1.0)
    for step in (9, 10, 10, 11):
        save_checkpoint(tmp_path, saved_state(step), weights, optimizer)
        assert 1 <= len(list(tmp_path.iterdir())) <= 2
    kept = [json.loads((path / "state.json").read_text())["step"] for path in sorted(tmp_path.iterdir())]
    assert kept == [10, 11]
    for _ in range(12):
        save_checkpoint(tmp_path, saved_state(12), weights, optimizer)
    loaded = load_checkpoint(tmp_path, weights, optimizer, pytest.fail)
    assert loaded is not None
    assert loaded.step == 12


@pytest.mark.parametrize("moment", ["before the weights", "before the rename", "before the old ones are removed"])
def test_crash_while_saving_keeps_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    weights, optimizer = weights_and_optimizer(1.0)
    save_checkpoint(tmp_path, saved_state(1), weights, optimizer)
    save_checkpoint(tmp_path, saved_state(2), weights, optimizer)

    def crash(*args: Any, **kwargs: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "before the weights":
            patch.setattr(checkpoint, "save_tensors", crash)
        elif moment == "before the rename":
            patch.setattr(Path, "rename", crash)
        else:
            patch.setattr(checkpoint.shutil, "rmtree", lambda path, **_: crash() if "00000001" in str(path) else None)
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, saved_state(3), weights, optimizer)
    loaded = load_checkpoint(tmp_path, weights, optimizer, pytest.fail)
    assert loaded is not None
    assert loaded.step == (3 if moment == "before the old ones are removed" else 2)
    save_checkpoint(tmp_path, saved_state(4), weights, optimizer)
    assert len([path for path in tmp_path.iterdir() if not path.name.startswith(".")]) == 2


def test_full_disk_is_an_oserror_even_from_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors 0.8.0 raises its own error, with the system's error number only in the message."""

    def fail(*args: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    weights, optimizer = weights_and_optimizer(1.0)
    save_checkpoint(tmp_path, saved_state(1), weights, optimizer)
    with monkeypatch.context() as patch:
        patch.setattr("alignment_core.models.base.saving.save_file", fail)
        with pytest.raises(OSError, match="No space left on device") as caught:
            save_checkpoint(tmp_path, saved_state(2), weights, optimizer)
    assert (caught.value.errno, Path(caught.value.filename).name) == (errno.ENOSPC, "tensors.safetensors")
    loaded = load_checkpoint(tmp_path, weights, optimizer, pytest.fail)
    assert loaded is not None
    assert loaded.step == 1


@pytest.mark.parametrize(
    ("adamw", "remedy"), [("32bit", "Set `adamw: paged_8bit`"), ("paged_8bit", "Lower `model.lora")]
)
def test_out_of_memory_in_adamw_takes_no_partial_step(world: World, tmp_path: Path, adamw: Any, remedy: str) -> None:
    """Memory runs out in step 3, after its first weight has moved. Resuming with enough memory changes nothing."""
    objective = DPO(**STEPS, adamw=adamw)
    uninterrupted = train_once(world, "dpo", objective, tmp_path / "uninterrupted", Listener())
    assert uninterrupted is not None
    run = world.open("dpo")
    weights = list(run.roles.parameters().values())

    def half(*_: Any) -> None:
        if run.step == 2:
            weights[0].data += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = register_optimizer_step_pre_hook(half)
    try:
        with pytest.raises(TrainingError, match="out of memory while taking the optimizer step") as error:
            learn(objective, run, tmp_path / "hit", every=0)
    finally:
        handle.remove()
    assert error.value.where == "step 3"
    assert str(error.value.do).startswith(remedy)
    listener = Listener()
    again = train_once(world, "dpo", objective, tmp_path / "hit", listener)
    assert "resumed after step 2" in listener.logs
    assert again is not None
    assert_same_result(again, uninterrupted)


def test_out_of_memory_in_batches_is_reported(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail in `batches`, outside of any pass, with the error of the CPU allocator."""

    def greedy(*_: Any) -> Any:
        return torch.empty(2**50)

    monkeypatch.setattr(Run, "shuffled", greedy)
    with pytest.raises(TrainingError, match="out of memory while building the batch of a step") as error:
        learn(DPO(**STEPS), world.open("dpo"), tmp_path)
    assert (error.value.where, "batch_size" in str(error.value.do)) == ("step 1", True)


FILES = ("tensors.safetensors", "state.json", "digests.json")


def flip_a_bit(path: Path, seed: int) -> None:
    """Flip a bit, as a failing disk or failing RAM does."""
    content, rng = bytearray(path.read_bytes()), random.Random(seed)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def tear(path: Path, seed: int) -> None:
    """Truncate the file, as a file system may do after a power failure."""
    os.truncate(path, path.stat().st_size * seed // 10)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip_a_bit, tear, lambda path, _: path.unlink()], ids=["flipped", "torn", "lost"])
def test_damaged_checkpoint_is_reported_and_the_previous_one_used(tmp_path: Path, damage: Any, name: str) -> None:
    weights, optimizer = weights_and_optimizer(1.0)
    for seed in range(5):
        for step in (1, 2):
            save_checkpoint(tmp_path, saved_state(step), weights, optimizer)
        damage(max(tmp_path.iterdir()) / name, seed)
        messages: list[str] = []
        loaded = load_checkpoint(tmp_path, weights, optimizer, messages.append)
        assert loaded is not None
        assert (loaded.step, loaded.metrics) == (1, {"loss": 1.1})
        assert len(messages) == 1
        assert "is damaged" in messages[0]
        assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damaged", [1, 2])
def test_run_with_damaged_checkpoints_ends_like_an_uninterrupted_one(
    world: World, tmp_path: Path, damaged: int
) -> None:
    uninterrupted = train_once(world, "dpo", OBJECTIVES["dpo"](), tmp_path / "uninterrupted", Listener())
    assert uninterrupted is not None
    broken = tmp_path / "broken"
    assert train_once(world, "dpo", OBJECTIVES["dpo"](), broken, Listener(kill_after_step=4), every=0) is None
    for path in sorted(broken.iterdir())[-damaged:]:
        flip_a_bit(path / "tensors.safetensors", damaged)
    second = Listener()
    resumed = train_once(world, "dpo", OBJECTIVES["dpo"](), broken, second, every=0)
    assert resumed is not None
    assert_same_result(resumed, uninterrupted)
    assert len(second.warnings) == damaged
    # Of the saved steps 2 and 3, the run resumes from the newest intact one, or else from the start.
    assert second.steps[0][0] == (3 if damaged == 1 else 1)


def test_state_that_is_not_json_is_a_plugin_error(tmp_path: Path) -> None:
    weights, optimizer = weights_and_optimizer(1.0)
    with pytest.raises(PluginError, match="cannot be saved"):
        save_checkpoint(tmp_path, saved_state(1, rows={"a": torch.zeros(2)}), weights, optimizer)


def test_objectives_in_these_tests_learn(world: World, tmp_path: Path) -> None:
    """Check that training changes the weights, because a run that changes nothing would resume perfectly."""
    for kind, objective in {"sft": SFT(**STEPS), "dpo": DPO(**STEPS)}.items():
        before = weights_of(world.open(kind))
        after = weights_of(learn(objective, world.open(kind), tmp_path / kind))
        assert all(not torch.equal(before[name], after[name]) for name in before)


class KeepsStepTwo(DPO):
    """Keeps the weights after its second step and restores them at the end."""

    def batches(self, run: Any) -> Any:
        for batch in super().batches(run):
            if run.step == 2 and not run.state.get("kept"):
                run.keep()
                run.state["kept"] = True
            yield batch
        run.restore()


def test_kept_weights_survive_a_stop(world: World, tmp_path: Path) -> None:
    plain = train_once(world, "dpo", DPO(**STEPS, schedule="constant"), tmp_path / "plain", Listener())
    assert plain is not None
    objective = KeepsStepTwo(**STEPS, schedule="constant")
    uninterrupted = train_once(world, "dpo", objective, tmp_path / "uninterrupted", Listener())
    assert uninterrupted is not None
    for stop_at in (1, 2, 3, 4, 5, 6):
        folder = tmp_path / f"stopped at {stop_at}"
        train_once(world, "dpo", objective, folder, Listener(stop_at=stop_at * 2))
        resumed = train_once(world, "dpo", objective, folder, Listener())
        assert resumed is not None, stop_at
        assert_same_result(resumed, uninterrupted)
        assert resumed.step == plain.step > 2
        assert any(not torch.equal(weights_of(resumed)[name], weight) for name, weight in weights_of(plain).items())
