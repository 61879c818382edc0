"""The cases of `benchmarks/gpu.py` on a CPU: every kind runs, and the comparisons notice a difference."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_cases.catalogue import cases
from gpu_cases.inputs.base_model import make_base
from gpu_cases.inputs.shapes import SHAPES
from gpu_cases.kinds import correctness
from gpu_cases.place import Place
from gpu_cases.run_case import kinds
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from alignment_core.config import LoadIn
from alignment_core.errors import TrainingError
from alignment_core.models.base.loading import load_base

CPU = torch.device("cpu")
GIB = 2**30


def parts(model: PreTrainedModel) -> dict[str, tuple[object, ...]]:
    """Return what the model consists of: kinds of modules, and types and shapes of weights and buffers."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found: dict[str, tuple[object, ...]] = {
        name: (type(tensor), tensor.dtype, tuple(tensor.shape), tensor.requires_grad)
        for name, tensor in tensors.items()
    }
    return found | {f"module {name}": (type(module), module.training) for name, module in model.named_modules()}


@pytest.mark.parametrize("load_in", ["fp32", "bf16", "nf4"])
@pytest.mark.parametrize("size", ["tiny", "tiny-tied"])
def test_a_made_model_is_like_a_loaded_one(size: str, load_in: LoadIn, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPES[size]))
    model.save_pretrained(tmp_path)
    loaded = load_base(str(tmp_path), revision=None, load_in=load_in, device=CPU)
    made = make_base(SHAPES[size], size, load_in, CPU)
    assert parts(made) == parts(loaded)
    for name, buffer in loaded.named_buffers():
        torch.testing.assert_close(made.get_buffer(name), buffer)
    marks = ("is_loaded_in_4bit", "is_quantized", "quantization_method", "dtype")
    assert [getattr(made, mark, None) for mark in marks] == [getattr(loaded, mark, None) for mark in marks]
    assert ("lm_head.weight" in dict(made.named_parameters())) == (size == "tiny")


@pytest.mark.parametrize(
    ("size", "parameters"),
    # as their model cards and files say
    [("0.5B", 494_032_768), ("1.5B", 1_543_714_304), ("3B", 3_212_749_824), ("8B", 8_030_261_248)],
)
def test_shapes_are_those_of_the_public_models(size: str, parameters: int) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPES[size]))
    assert sum(weight.numel() for weight in model.parameters()) == parameters


def test_models_for_a_card_and_for_the_cpu_have_the_same_4_bit_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card, NF4 models compute in bf16."""
    one = make_base(SHAPES["tiny"], "tiny", "nf4", CPU)
    monkeypatch.setattr("gpu_cases.inputs.base_model.base_dtype", lambda *_: torch.bfloat16)
    other = make_base(SHAPES["tiny"], "tiny", "nf4", CPU)
    name = "model.layers.0.mlp.up_proj.weight"
    assert other.dtype == torch.bfloat16
    assert torch.equal(one.get_parameter(name), other.get_parameter(name))


@pytest.fixture
def wrong_on_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the adapter of every second run that is opened: the one on the card."""
    opened, number = correctness.open_tiny, iter(range(100))

    def open_wrong(*arguments: Any, **options: Any) -> Any:
        run = opened(*arguments, **options)
        if next(number) % 2:
            weight = next(iter(run.roles.parameters().values()))
            with torch.no_grad():
                weight.mul_(1.3)
        return run

    monkeypatch.setattr(correctness, "open_tiny", open_wrong)
    monkeypatch.setattr(correctness, "PRECISIONS", ("fp32",))


@pytest.mark.parametrize("task", ["sft", "ppo"])
def test_gradients_are_compared(task: str, wrong_on_the_card: None) -> None:
    result = correctness.gradients(Place(), task)
    assert not result.ok
    assert result.details["fp32"]["gradient"] > correctness.GRADIENT["fp32"]
    assert result.details["fp32"]["split"] <= correctness.SPLIT["fp32"]


def test_generation_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled, number = correctness._sampled, iter(range(100))

    def cut(*arguments: Any) -> Any:
        found = sampled(*arguments)
        return found if next(number) < 3 else [found[0]] * len(found)  # the drawn tokens on the card

    monkeypatch.setattr(correctness, "_sampled", cut)
    result = correctness.generation(Place())
    assert not result.ok
    assert result.details["equal_rows"] == {"greedy": 1.0, "drawn": 1 / correctness.ROWS}


def test_a_run_that_starts_again_instead_of_resuming_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignment_core.training.loop.load_checkpoint", lambda *_: None)
    result = correctness.resuming(Place(), "sft")
    assert not result.ok
    assert result.details["steps_done"] == 1 + 3 + 4


def test_a_run_that_resumes_without_its_moments_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignment_core.training.checkpoint.restore_moments", lambda *_: None)
    result = correctness.resuming(Place(), "sft")
    assert not result.ok
    assert result.details["difference"] > 0


def test_a_cap_limits_the_allocator_and_what_is_shown_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    fractions: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (118 * GIB, 128 * GIB))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    place = Place.__new__(Place)
    place.device, place.context = torch.device("cuda", 0), 2 * GIB
    place.cap(16)
    # Of 16 GiB, the driver has 2; 10 of the card's 128 are used.
    assert fractions == [14 / 128]
    assert torch.cuda.mem_get_info() == (6 * GIB, 16 * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (7 * GIB, 8 * GIB))
    with pytest.raises(ValueError, match=r"the card has 8\.0 GiB, the case needs 24"):
        place.cap(24)


@pytest.mark.ci
@pytest.mark.parametrize("case", [case for case in cases(tiny=True) if case.kind != "peer"], ids=lambda case: case.name)
def test_every_tiny_case_succeeds(case: Any) -> None:
    result = kinds()[case.kind](Place(), **copy.deepcopy(case.arguments))
    found = result.to_json()
    assert found["ok"], found
    if case.kind == "train":
        assert found["tokens_per_s"] > 0
        assert found["predicted"] > 0
        assert 0 < found["details"]["roofline_share"] < 1
        assert found["details"]["fits"]
    if case.name == "train/ppo/tiny":
        assert all(seconds > 0 for seconds in found["details"]["split"].values())
    if case.kind in ("step", "sampling"):
        assert any("flash_attention" in kernel for kernel in found["details"]["attention"])
    if case.kind == "step":
        assert found["details"]["reads_by_host"] > 0


def test_a_run_that_ends_with_an_error_keeps_its_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise TrainingError("out of memory even with the smallest token budget", got=64)

    monkeypatch.setattr("gpu_cases.kinds.training.train", fail)
    found = kinds()["train"](Place(), task="sft", size="tiny", cap=None).to_json()
    assert found["ok"] is False
    assert found["error"] == "TrainingError: out of memory even with the smallest token budget. got 64."
    assert found["predicted"] > 0
    assert found["settings"]["token_budget"] == 4096
    assert found["tokens_per_s"] is None
