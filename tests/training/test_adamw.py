"""AdamW with 8-bit moments: the steps of the 32-bit one but for rounding, resumed to the last bit, and its memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine import LORA
from runs import Killed, Listener, learn, make_world, preference_rows, weights_of
from safetensors.torch import load_file

from alignment_core.config import LoraConfig
from alignment_core.errors import TrainingError
from alignment_core.models.counting import bytes_of_training
from alignment_core.stages.sft import SFT
from alignment_core.training import adamw
from alignment_core.training.adamw import make_adamw, restore_state, state_of
from alignment_core.training.run import Rows
from alignment_plugins.dpo import DPO

WIDE = LoraConfig(rank=128, alpha=8)
"""On layers of width 32 and 64: factors of 4096 and 8192 weights, whose moments have 8 bits, and some smaller."""
SIZES = (64, 4096, 70_001)


def weights(device: str = "cpu") -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(size, generator=generator).to(device)) for size in SIZES]


def steps(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, count: int, seed: int) -> None:
    """Gradients of a noisy quadratic, as training has them: a direction that stays, and noise."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.grad = parameter.detach() + 0.5 * noise
        optimizer.step()


def test_eight_bits_take_the_steps_of_thirty_two_but_for_rounding() -> None:
    start, ends = weights(), []
    for moments in ("32bit", "paged_8bit"):
        parameters = weights()
        steps(parameters, make_adamw(parameters, moments, 1e-2, 0.1), 40, seed=1)  # type: ignore[arg-type]
        ends.append([parameter.detach() for parameter in parameters])
    for size, before, whole, rounded in zip(SIZES, start, *ends, strict=True):
        way = (whole - before).norm()
        assert way > 0.05 * before.norm()
        # Small tensors keep 32 bits; forgetting the decay or a moment would be off by more than a tenth.
        assert (rounded - whole).norm() < (1e-5 if size < 4096 else 0.05) * way
        assert size < 4096 or not torch.equal(rounded, whole)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("moments", ["32bit", "paged_8bit"])
def test_a_restored_optimizer_goes_on_to_the_last_bit(device: str, moments: Any) -> None:
    whole = weights(device)
    optimizer = make_adamw(whole, moments, 1e-2, 0.1)
    steps(whole, optimizer, 5, seed=1)
    saved = [{name: value.clone().cpu() for name, value in state_of(optimizer, p).items()} for p in whole]
    again = [torch.nn.Parameter(parameter.detach().clone()) for parameter in whole]
    other = make_adamw(again, moments, 1e-2, 0.1)
    for parameter, state in zip(again, saved, strict=True):
        restore_state(other, parameter, state)
    steps(whole, optimizer, 5, seed=2)
    steps(again, other, 5, seed=2)
    for one, two in zip(whole, again, strict=True):
        assert torch.equal(one, two)


@pytest.mark.gpu
def test_on_a_gpu_large_moments_are_paged() -> None:
    parameters = [torch.nn.Parameter(torch.randn(200_000, device="cuda"))]
    optimizer = make_adamw(parameters, "paged_8bit", 1e-2, 0.0)
    steps(parameters, optimizer, 1, seed=1)
    assert optimizer.state[parameters[0]]["state1"].is_paged
    restored = make_adamw(parameters, "paged_8bit", 1e-2, 0.0)
    restore_state(restored, parameters[0], state_of(optimizer, parameters[0]))
    assert restored.state[parameters[0]]["state1"].is_paged


@pytest.mark.parametrize("moments", ["32bit", "paged_8bit"])
def test_the_memory_is_counted(moments: Any) -> None:
    parameters = weights()
    optimizer = make_adamw(parameters, moments, 1e-2, 0.0)
    steps(parameters, optimizer, 1, seed=1)
    held = sum(parameter.grad.nbytes for parameter in parameters if parameter.grad is not None)
    held += sum(v.nbytes for p in parameters for v in state_of(optimizer, p).values() if v.dim())
    assert bytes_of_training(parameters, moments) == held


def test_a_killed_training_with_eight_bits_ends_as_an_unbroken_one(tiny_model: Path, tmp_path: Path) -> None:
    world = make_world(tiny_model, tmp_path / "world", WIDE)
    objective = SFT(batch_size=4, epochs=2, learning_rate=1e-2, adamw="paged_8bit")
    unbroken = learn(objective, world.open("sft"), tmp_path / "unbroken")
    with pytest.raises(Killed):
        learn(objective, world.open("sft", progress=Listener(kill_after_step=3)), tmp_path / "killed", every=0)
    saved = load_file(max((tmp_path / "killed").glob("checkpoint-*")) / "tensors.safetensors")
    types = {value.dtype for name, value in saved.items() if name.startswith("optimizer.state1.")}
    assert types == {torch.uint8, torch.float32}
    resumed = learn(objective, world.open("sft"), tmp_path / "killed")
    assert resumed.history == unbroken.history
    for name, weight in weights_of(unbroken).items():
        assert torch.equal(weights_of(resumed)[name], weight), name
    full = learn(objective.model_copy(update={"adamw": "32bit"}), world.open("sft"), tmp_path / "full")
    assert full.history[-1]["loss"] == pytest.approx(unbroken.history[-1]["loss"], rel=0.05)
    assert full.history[-1]["loss"] != unbroken.history[-1]["loss"]


def test_where_it_does_not_run_nothing_is_trained(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: Any) -> None:
        raise RuntimeError("no kernel for this device\nand more")

    monkeypatch.setattr(adamw.AdamW8bit, "step", step)
    run = make_world(tiny_model, tmp_path / "world", LORA).open("dpo", rows=Rows(preferences=preference_rows(4)))
    before = weights_of(run)
    with pytest.raises(TrainingError, match="8-bit AdamW does not run here") as error:
        learn(DPO(adamw="paged_8bit"), run, tmp_path / "run")
    assert error.value.got == "no kernel for this device on cpu"
    assert "adamw: 32bit" in str(error.value)
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(run).items())


def test_a_step_that_leads_elsewhere_is_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adamw.AdamW8bit, "step", lambda self: None)
    with pytest.raises(TrainingError, match="does not run here"):
        make_adamw(weights(), "paged_8bit", 1e-2, 0.0)
