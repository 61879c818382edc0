"""The memory that a dry run counts equals that of real tensors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import save_model
from engine import CPU, LORA, open_roles
from every_architecture import save_small, small_config

from alignment_core.config import LoadIn
from alignment_core.errors import ModelError
from alignment_core.models.generation.choice import Sampling
from alignment_core.models.generation.sampling import generate
from alignment_core.models.memory import dry_run
from alignment_core.models.memory.architecture import Architecture, Pass
from alignment_core.models.memory.counting import AllocationCounter
from alignment_core.models.memory.dry_run import DryRun, _learning
from alignment_core.models.roles.logps import Budget, LanguageModel
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import TokenSequence


@pytest.fixture(autouse=True)
def _without_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count tensors only. The heap model has its own tests."""
    monkeypatch.setattr(dry_run, "heap_for", lambda _: None)


IDS = tuple(range(1, 29))
PASS = Pass("policy", (TokenSequence(IDS[:24], 14),) * 4, 96)
SHARED = Pass("policy", tuple(TokenSequence((*prompt, *IDS[:8]), 20) for prompt in (IDS[:20], IDS[2:22])) * 2, 72)
"""Two prompts, each computed once, with two completions each."""


def plan(roles: Roles, *, trained: tuple[str, ...] = ("policy",), heads: tuple[str, ...] = ()) -> DryRun:
    return DryRun(Architecture(roles.model.config, "fp32", LORA, trained, heads, trained, CPU, roles.packs))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "bert"])
@pytest.mark.parametrize("checkpointing", [False, True, 2], ids=["kept", "recomputed", "half"])
@pytest.mark.parametrize("one", [PASS, SHARED, replace(SHARED, hidden=True)], ids=["alone", "shared", "hidden"])
def test_peak_matches_real_tensors(tmp_path: Path, name: str, checkpointing: int, one: Pass) -> None:
    roles = open_roles(save_model(name, tmp_path))
    dry = plan(roles)
    roles.add_new("policy", LORA, 0)
    roles.train_only(["policy"])
    roles.checkpoint_layers(checkpointing)
    for parameter in roles.parameters().values():
        parameter.grad = torch.zeros_like(parameter)
    own = [*roles.model.parameters(), *roles.model.buffers()]
    own += [parameter.grad for parameter in roles.parameters().values() if parameter.grad is not None]
    with roles.training(), AllocationCounter(own) as counted:
        _learning(roles, [one])()
    assert dry.training([one], checkpointing=checkpointing) == pytest.approx(counted.peak, rel=0.05)


def test_footprint_matches_the_loaded_model(tiny_model: Path) -> None:
    roles = open_roles(tiny_model)
    found = plan(roles, trained=("policy", "value"), heads=("value",)).footprint()
    base = sum(p.numel() for p in roles.model.parameters())
    for role in ("policy", "value"):
        roles.add_new(role, LORA, 0)
    roles.add_head("value")
    roles.train_only(["policy", "value"])
    learned = sum(p.numel() for p in roles.parameters().values())
    assert (found.parameters, found.base) == (base, 4 * base)
    assert (found.trainable, found.adapters, found.training) == (learned, 4 * learned, 12 * learned)


def test_snapshots_and_own_weights_are_counted(tiny_model: Path) -> None:
    """Both are held. A snapshot is not trained, but is written into checkpoints."""
    roles = open_roles(tiny_model)
    spec = plan(roles).architecture
    before = DryRun(spec).footprint()
    found = DryRun(
        replace(spec, adapters=("policy", "one", "two"), snapshots=("one", "two"), parameters=33)
    ).footprint()
    assert found.trainable == before.trainable + 33
    assert found.adapters == 3 * before.adapters + 4 * 33
    assert found.training == before.training + 12 * 33
    assert found.snapshots == 2 * before.adapters


@pytest.mark.parametrize("layers", [1, 8])
def test_small_models_are_run_whole(tmp_path: Path, layers: int) -> None:
    assert plan(open_roles(save_model("llama", tmp_path, num_hidden_layers=layers)))._sizes == [layers]


def test_skipped_layers_are_counted(tmp_path: Path) -> None:
    """Extrapolation from a few layers gives the same result as running the complete model."""
    layers = 11
    sampled = plan(open_roles(save_model("llama", tmp_path, num_hidden_layers=layers)))
    assert sampled._sizes == [4, 8]
    whole = DryRun.__new__(DryRun)
    whole.__dict__.update(sampled.__dict__, _sizes=[layers], _models={layers: sampled._build(layers)})
    for checkpointing in (False, 4, 2, True):
        expected = whole.training([PASS], checkpointing=checkpointing)
        assert sampled.training([PASS], checkpointing=checkpointing) == pytest.approx(expected, rel=0.05)
    assert sampled.footprint() == whole.footprint()


def test_checkpointing_takes_less_and_more_tokens_take_more(tmp_path: Path) -> None:
    dry = plan(open_roles(save_model("llama", tmp_path, num_hidden_layers=6)))
    kept, quarter, half, recomputed = (dry.training([PASS], checkpointing=every) for every in (False, 4, 2, True))
    assert recomputed < 0.6 * kept
    # 2 of 6 layers, and 3 of 6
    assert kept > quarter > half > recomputed
    assert quarter == pytest.approx(kept - (kept - recomputed) * 2 / 6, rel=0.1)
    assert half == pytest.approx((kept + recomputed) / 2, rel=0.1)
    assert dry.training([PASS, PASS], checkpointing=False) > 1.8 * kept


def test_full_logits_are_counted_if_they_cannot_be_avoided(tmp_path: Path) -> None:
    """With a vocabulary of 20,000, the logits of 96 tokens are 7.7 MB, held two or three times."""
    whole = plan(open_roles(save_model("hyperclovax", tmp_path / "a", vocab_size=20_000)))
    chunked = plan(open_roles(save_model("llama", tmp_path / "b", vocab_size=20_000)))
    logits = 96 * 20_000 * 4
    assert whole.training([PASS], checkpointing=False) - chunked.training([PASS], checkpointing=False) > 0.5 * logits


@pytest.mark.parametrize("trained", [["policy"], ["policy", "value"]], ids=["one role", "two roles"])
@pytest.mark.parametrize("checkpointing", [False, 2, True], ids=["kept", "half", "recomputed"])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("llama", {}),
        ("llama", {"hidden_size": 128, "num_hidden_layers": 8, "num_key_value_heads": 4}),
        ("llama", {"hidden_size": 128, "intermediate_size": 400, "num_hidden_layers": 8, "num_key_value_heads": 1}),
        ("gpt2", {"n_embd": 128}),
    ],
)
def test_sampling_takes_less_memory_than_training(
    tmp_path: Path, name: str, shape: dict[str, int], checkpointing: int, trained: list[str]
) -> None:
    """Compare a batch that fills the cache with a micro-batch that fills the budget, using real tensors."""
    roles = open_roles(save_model(name, tmp_path, **shape))
    for role in trained:
        roles.add_new(role, LORA, 0)
    roles.train_only(trained)
    roles.checkpoint_layers(checkpointing)
    dry, budget, prompt, new = plan(roles, trained=tuple(trained)), 192, 20, 12
    assert dry.generation_cache_factor(checkpointing=checkpointing) == roles.generation_cache_factor()
    rows = budget * roles.generation_cache_factor() // (prompt + new)
    prompts = [TokenSequence((i, *(7,) * (prompt - 1)), prompt) for i in range(rows)]
    own = [*roles.model.parameters(), *roles.model.buffers()]
    with torch.no_grad(), AllocationCounter(own) as sampled:
        generate(
            roles, "policy", prompts, noise_keys=[str(i) for i in range(rows)], sampling=Sampling(new), stop_ids=(),
            pad_id=0, budget=Budget(budget), on_step=lambda _: None,
        )  # fmt: skip
    with roles.training(), AllocationCounter(own) as learned:
        sequences = [TokenSequence((*p.ids, *(7,) * new), prompt) for p in prompts[: budget // (prompt + new)]]
        waiting = [LanguageModel(roles, role, 0, Budget(budget)).logps(sequences).sum() for role in trained]
        torch.stack(waiting).sum().backward()
    assert sampled.peak < learned.peak


def config_of(name: str) -> Any:
    config = small_config(name)
    config.name_or_path = name
    return config


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "llama4_text", "deepseek_v32", "granitemoehybrid"])
@pytest.mark.parametrize("load_in", ["fp32", "nf4"])
def test_mixtures_and_hybrids_are_counted(name: str, load_in: LoadIn) -> None:
    """Without weights, it is assumed that they pack. DeepSeek V3.2 does not run without a mask, and so runs padded."""
    dry = DryRun(Architecture(config_of(name), load_in, LORA, ("policy",), (), ("policy",), CPU))
    assert dry.architecture.packs is (name != "deepseek_v32")
    assert dry.training([PASS], checkpointing=True) > 0
    assert dry.reading(PASS) > 0
    assert dry.prompting(2, 8) > 0
    assert (dry.notes() == []) is (name == "qwen3_moe" and load_in == "fp32")


def test_experts_take_the_memory_of_real_ones(tmp_path: Path) -> None:
    roles = open_roles(save_small("qwen3_moe", tmp_path))
    dry = plan(roles)
    roles.add_new("policy", LORA, 0)
    roles.train_only(["policy"])
    for parameter in roles.parameters().values():
        parameter.grad = torch.zeros_like(parameter)
    own = [*roles.model.parameters(), *roles.model.buffers()]
    own += [parameter.grad for parameter in roles.parameters().values() if parameter.grad is not None]
    with roles.training(), AllocationCounter(own) as counted:
        _learning(roles, [PASS])()
    assert dry.training([PASS], checkpointing=False) == pytest.approx(counted.peak, rel=0.1)


def test_shapes_that_depend_on_the_data_are_one_sentence() -> None:
    dry = DryRun(Architecture(config_of("jetmoe"), "fp32", LORA, ("policy",), (), ("policy",), CPU))
    with pytest.raises(ModelError, match="cannot be predicted"):
        dry.training([PASS], checkpointing=True)


def test_plan_says_that_a_card_computes_in_float16(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roles = open_roles(tiny_model)
    assert not any("float16" in note for note in plan(roles).notes())
    monkeypatch.setattr(dry_run, "base_dtype", lambda load_in, device: torch.float16)
    assert plan(roles).notes()[0] == "this GPU has no bf16: stages compute in float16, with a scaled loss"
