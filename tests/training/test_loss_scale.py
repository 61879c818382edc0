"""Training in float16, as on a GPU without bf16, tried on the CPU: the scaled loss, its overflow, and resuming."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from runs import OBJECTIVES, Killed, Listener, World, learn, make_world, weights_of

from alignment_core.models.base import loading
from alignment_core.models.base.loading import base_dtype
from alignment_core.training.step import loss_scale
from alignment_core.training.step.loss_scale import LossScale

CARD = torch.device("cuda")


@pytest.fixture(scope="module")
def world(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tiny_model, tmp_path_factory.mktemp("world"))


@pytest.fixture
def float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "base_dtype", lambda load_in, device: torch.float16)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_training_in_float16_is_that_in_float32(
    world: World, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first steps agree within float16's rounding. What PPO learns depends on what was sampled."""
    exact = learn(OBJECTIVES[kind](), world.open(kind), tmp_path / "float32")
    monkeypatch.setattr(loading, "base_dtype", lambda load_in, device: torch.float16)
    rounded = world.open(kind)
    assert rounded.roles.model.dtype == torch.float16
    learn(OBJECTIVES[kind](), rounded, tmp_path / "float16")
    assert all(weight.dtype == torch.float32 for weight in rounded.roles.parameters().values())
    assert all(math.isfinite(value) for entry in rounded.history for value in entry.values())
    for name, expected in exact.history[0].items() if kind != "ppo" else ():
        assert rounded.history[0][name] == pytest.approx(expected, rel=0.02, abs=0.01), name
    assert rounded.step > 0
    assert kind == "ppo" or len(rounded.history) == len(exact.history)


@pytest.mark.usefixtures("float16")
def test_step_whose_scaled_gradient_overflows_is_repeated_and_changes_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = learn(OBJECTIVES["dpo"](), world.open("dpo"), tmp_path / "usual")
    monkeypatch.setattr(loss_scale, "FIRST", 2.0**40)
    progress = Listener()
    large = learn(OBJECTIVES["dpo"](), world.open("dpo", progress=progress), tmp_path / "large")
    repeats = [message for message in progress.logs if "too large for float16. The step is repeated" in message]
    assert repeats
    assert repeats[0].startswith("step 1: a gradient times 1.09951e+12 is too large")
    assert large.history == usual.history
    for name, weight in weights_of(usual).items():
        assert torch.equal(weights_of(large)[name], weight), name


@pytest.mark.usefixtures("float16")
def test_resumed_training_has_the_same_factor(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "FIRST", 2.0**30)
    monkeypatch.setattr(loss_scale, "GROWTH_STEPS", 2)
    whole = learn(OBJECTIVES["sft"](), world.open("sft"), tmp_path / "whole")
    killed = world.open("sft", progress=Listener(kill_after_step=3))
    with pytest.raises(Killed):
        learn(OBJECTIVES["sft"](), killed, tmp_path / "killed", every=0)
    again = Listener()
    resumed = learn(OBJECTIVES["sft"](), world.open("sft", progress=again), tmp_path / "killed", every=0)
    assert resumed.history == whole.history
    assert not any("step 1:" in message for message in again.logs)
    for name, weight in weights_of(whole).items():
        assert torch.equal(weights_of(resumed)[name], weight), name


def test_factor_is_halved_by_infinity_and_doubled_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "GROWTH_STEPS", 2)
    scale, weight = LossScale(torch.float16), torch.nn.Parameter(torch.zeros(2))
    factors = []
    for gradient in (float("inf"), float("nan"), 8.0, 8.0, 8.0):
        weight.grad = torch.tensor([1.0, gradient])
        factors.append((scale.remove([weight]), scale.factor))
    assert factors == [(False, 2.0**15), (False, 2.0**14), (True, 2.0**14), (True, 2.0**15), (True, 2.0**15)]
    assert torch.equal(weight.grad, torch.tensor([1.0, 8.0]) / 2.0**15)


def test_other_types_are_not_scaled() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.tensor([float("inf")])
    for dtype in (torch.float32, torch.bfloat16):
        scale = LossScale(dtype)
        assert scale.remove([weight])  # the loop's own check then reports it
        assert scale.factor == 1


@pytest.mark.parametrize(
    ("bf16", "capability", "expected"),
    [
        (True, (8, 0), torch.bfloat16),
        (False, (7, 5), torch.float16),
        (False, (7, 0), torch.float16),
        (False, (6, 1), torch.float32),
    ],
)
def test_type_of_a_quantized_base_depends_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, capability: tuple[int, int], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert base_dtype("nf4", CARD) == expected
    assert base_dtype("bf16", CARD) == torch.bfloat16
