"""AdamW with 8-bit moments: the 32-bit steps up to rounding, bit-exact resuming, and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine import LORA
from runs import Killed, Listener, learn, make_world, preference_rows, weights_of
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

from alignment_core.config import LoraConfig
from alignment_core.errors import TrainingError
from alignment_core.models.memory.counting import training_bytes
from alignment_core.stages.sft import SFT
from alignment_core.training.rows import Rows
from alignment_core.training.step import adamw
from alignment_core.training.step.adamw import make_adamw, moments_of, restore_moments
from alignment_plugins.dpo import DPO

WIDE = LoraConfig(rank=128, alpha=8)
"""On layers of width 32 and 64 this gives factors of 4096 and 8192 weights with 8-bit moments, and smaller ones."""
SIZES = (64, 4096, 70_001)


def weights(device: str = "cpu") -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(size, generator=generator).to(device)) for size in SIZES]


def steps(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, count: int, seed: int) -> None:
    """Take steps on a noisy quadratic, whose gradients resemble training: a constant direction plus noise."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.grad = parameter.detach() + 0.5 * noise
        optimizer.step()


def test_8bit_steps_match_32bit_steps_up_to_rounding() -> None:
    start, ends = weights(), []
    for moments in ("32bit", "paged_8bit"):
        parameters = weights()
        steps(parameters, make_adamw(parameters, moments, 1e-2, 0.1), 40, seed=1)  # type: ignore[arg-type]
        ends.append([parameter.detach() for parameter in parameters])
    for size, before, whole, rounded in zip(SIZES, start, *ends, strict=True):
        distance = (whole - before).norm()
        assert distance > 0.05 * before.norm()
        # Small tensors keep 32 bits. Omitting the decay or a moment would cause an error above a tenth.
        assert (rounded - whole).norm() < (1e-5 if size < 4096 else 0.05) * distance
        assert size < 4096 or not torch.equal(rounded, whole)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("moments", ["32bit", "paged_8bit"])
def test_restored_optimizer_continues_bit_exactly(device: str, moments: Any) -> None:
    whole = weights(device)
    optimizer = make_adamw(whole, moments, 1e-2, 0.1)
    steps(whole, optimizer, 5, seed=1)
    saved = [{name: value.clone().cpu() for name, value in moments_of(optimizer, p).items()} for p in whole]
    again = [torch.nn.Parameter(parameter.detach().clone()) for parameter in whole]
    other = make_adamw(again, moments, 1e-2, 0.1)
    for parameter, state in zip(again, saved, strict=True):
        restore_moments(other, parameter, state)
    steps(whole, optimizer, 5, seed=2)
    steps(again, other, 5, seed=2)
    for one, two in zip(whole, again, strict=True):
        assert torch.equal(one, two)


def test_a_card_updates_all_weights_at_once() -> None:
    """The weights have no content and claim to be on a card. A checkpoint holds the counter of steps on the CPU."""
    assert not make_adamw(weights(), "32bit", 1e-2, 0.0).param_groups[0]["fused"]
    saved = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4), "exp_avg_sq": torch.zeros(4)}
    with FakeTensorMode(allow_non_fake_inputs=True):
        weight = torch.nn.Parameter(torch.empty(4, device="cuda"))
        optimizer = make_adamw([weight], "32bit", 1e-2, 0.0)
        restore_moments(optimizer, weight, saved)
    assert optimizer.param_groups[0]["fused"]
    assert {name: value.device.type for name, value in optimizer.state[weight].items()} == dict.fromkeys(saved, "cuda")


@pytest.mark.gpu
def test_large_moments_are_paged_on_a_gpu() -> None:
    parameters = [torch.nn.Parameter(torch.randn(200_000, device="cuda"))]
    optimizer = make_adamw(parameters, "paged_8bit", 1e-2, 0.0)
    steps(parameters, optimizer, 1, seed=1)
    assert optimizer.state[parameters[0]]["state1"].is_paged
    restored = make_adamw(parameters, "paged_8bit", 1e-2, 0.0)
    restore_moments(restored, parameters[0], moments_of(optimizer, parameters[0]))
    assert restored.state[parameters[0]]["state1"].is_paged


@pytest.mark.parametrize("moments", ["32bit", "paged_8bit"])
def test_training_bytes_match_the_memory_held(moments: Any) -> None:
    parameters = weights()
    optimizer = make_adamw(parameters, moments, 1e-2, 0.0)
    steps(parameters, optimizer, 1, seed=1)
    held = sum(parameter.grad.nbytes for parameter in parameters if parameter.grad is not None)
    held += sum(v.nbytes for p in parameters for v in moments_of(optimizer, p).values() if v.dim())
    assert training_bytes(parameters, moments) == held


def test_killed_8bit_training_ends_like_an_uninterrupted_one(tiny_model: Path, tmp_path: Path) -> None:
    world = make_world(tiny_model, tmp_path / "world", WIDE)
    objective = SFT(batch_size=4, epochs=2, learning_rate=1e-2, adamw="paged_8bit")
    uninterrupted = learn(objective, world.open("sft"), tmp_path / "uninterrupted")
    with pytest.raises(Killed):
        learn(objective, world.open("sft", progress=Listener(kill_after_step=3)), tmp_path / "killed", every=0)
    saved = load_file(max((tmp_path / "killed").glob("checkpoint-*")) / "tensors.safetensors")
    types = {value.dtype for name, value in saved.items() if name.startswith("optimizer.state1.")}
    assert types == {torch.uint8, torch.float32}
    resumed = learn(objective, world.open("sft"), tmp_path / "killed")
    assert resumed.history == uninterrupted.history
    for name, weight in weights_of(uninterrupted).items():
        assert torch.equal(weights_of(resumed)[name], weight), name
    full = learn(objective.model_copy(update={"adamw": "32bit"}), world.open("sft"), tmp_path / "full")
    assert full.history[-1]["loss"] == pytest.approx(uninterrupted.history[-1]["loss"], rel=0.05)
    assert full.history[-1]["loss"] != uninterrupted.history[-1]["loss"]


def test_unsupported_device_is_an_error_before_training(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: Any) -> None:
        raise RuntimeError("no kernel for this device\nand more")

    monkeypatch.setattr(adamw.AdamW8bit, "step", step)
    run = make_world(tiny_model, tmp_path / "world", LORA).open("dpo", rows=Rows(preferences=preference_rows(4)))
    before = weights_of(run)
    with pytest.raises(TrainingError, match="8-bit AdamW does not run on this device") as error:
        learn(DPO(adamw="paged_8bit"), run, tmp_path / "run")
    assert error.value.got == "no kernel for this device on cpu"
    assert "adamw: 32bit" in str(error.value)
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(run).items())


def test_8bit_step_with_a_wrong_result_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adamw.AdamW8bit, "step", lambda self: None)
    with pytest.raises(TrainingError, match="does not run on this device"):
        make_adamw(weights(), "paged_8bit", 1e-2, 0.0)
