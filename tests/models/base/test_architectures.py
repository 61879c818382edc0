"""Log-probabilities, generation and dropout of many architectures, compared with the model's own output."""

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, NOT_SEPARABLE, save_model
from engine import (
    CPU,
    ENOUGH,
    LORA,
    PAD,
    STOP,
    disturb,
    language,
    naive_logps,
    naive_token_logps,
    open_roles,
    scalar,
    sequences,
)
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from alignment_core.config import LoraConfig
from alignment_core.errors import ModelError
from alignment_core.models.base import parts
from alignment_core.models.base.loading import choose_device, load_base
from alignment_core.models.base.parts import separable
from alignment_core.models.generation.choice import Sampling
from alignment_core.models.generation.sampling import generate
from alignment_core.models.roles.logps import Budget
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import TokenSequence


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name: str = request.param
    return save_model(name, tmp_path_factory.mktemp(name.replace(" ", "-")))


@pytest.fixture
def roles(model_folder: Path) -> Roles:
    roles = open_roles(model_folder)
    roles.add_new("policy", LORA, 0)
    disturb(roles, "policy", 1)
    roles.train_only(["policy"])
    return roles


def test_logps_match_the_models_logits(roles: Roles) -> None:
    found = sequences(5)
    policy = language(roles, "policy")
    with roles.use("policy"), torch.no_grad():
        expected = naive_logps(roles.model, found)
        scaled = [naive_token_logps(roles.model, sequence, 0.6) for sequence in found]
    torch.testing.assert_close(policy.logps(found).double(), expected, rtol=1e-5, atol=2e-4)
    ours = policy.token_logps(found, 0.6)
    for row, logps in enumerate(scaled):
        torch.testing.assert_close(ours.logps[row, : len(logps)].double(), logps, rtol=1e-5, atol=1e-4)


def test_gradients_match_the_models_logits(roles: Roles) -> None:
    found = sequences(3)
    roles.checkpoint_layers(True)
    with roles.training():
        language(roles, "policy").logps(found).sum().backward()  # type: ignore[no-untyped-call]
    ours = [parameter.grad for parameter in roles.parameters().values()]
    roles.checkpoint_layers(False)
    for parameter in roles.parameters().values():
        parameter.grad = None
    with roles.use("policy"):
        naive_logps(roles.model, found).sum().backward()  # type: ignore[no-untyped-call]
    for mine, parameter in zip(ours, roles.parameters().values(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_base_dropout_stays_off_in_training(roles: Roles, checkpointing: bool) -> None:
    roles.checkpoint_layers(checkpointing)
    policy, found = language(roles, "policy"), sequences(3)
    still = policy.logps(found).detach()
    with roles.training():
        assert torch.equal(policy.logps(found).detach(), still)


def test_greedy_generation_matches_transformers(roles: Roles) -> None:
    """Compare a batch of prompts of unequal length with each prompt alone without padding."""
    prompts = [TokenSequence(sequence.ids, len(sequence.ids)) for sequence in sequences(5, seed=3)]
    ours = generate(
        roles,
        "policy",
        prompts,
        noise_keys=[""] * 5,
        sampling=Sampling(12, temperature=0),
        stop_ids=[STOP],
        pad_id=PAD,
        budget=Budget(ENOUGH),
        on_step=lambda _: None,
    )
    for prompt, found in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt.ids])
        with roles.use("policy"):
            (theirs,) = roles.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=PAD
            ).tolist()
        row = theirs[len(prompt.ids) :]
        assert list(found.sequence.completion) == (row[: row.index(STOP) + 1] if STOP in row else row)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_saved_adapter_loads_in_plain_peft(roles: Roles, tmp_path: Path) -> None:
    roles.save("policy", tmp_path)
    plain = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path)).eval()
    found = sequences(3)
    torch.testing.assert_close(
        language(roles, "policy").logps(found).double(), naive_logps(plain, found), rtol=1e-5, atol=2e-4
    )


def test_quantized_logps_match_the_models_logits(model_folder: Path) -> None:
    roles = open_roles(model_folder, "nf4")
    roles.add_new("policy", LORA, 0)
    disturb(roles, "policy", 1)
    found = sequences(3)
    with roles.use("policy"):
        expected = naive_logps(roles.model, found)
    torch.testing.assert_close(language(roles, "policy").logps(found).double(), expected.detach(), rtol=1e-5, atol=2e-4)


def test_separable_is_false_if_logits_need_more_than_the_head(
    model_folder: Path, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["model_folder"]
    roles = open_roles(model_folder)
    assert roles.separable is (name not in NOT_SEPARABLE)
    # The dry run has no weights.
    with torch.device("meta"):
        assert separable(AutoModelForCausalLM.from_config(roles.model.config)) is roles.separable


def test_wrong_head_shape_is_detected_in_bf16_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model("cohere", tmp_path)
    assert open_roles(folder, "bf16").separable
    monkeypatch.setattr(parts, "head_shape", lambda model: parts.HeadShape())
    assert not open_roles(folder, "bf16").separable


class Nameless(LlamaForCausalLM):
    """A Llama that exposes neither its body nor its head."""

    base_model_prefix = "unknown"

    def get_output_embeddings(self) -> None:
        return None


def test_model_without_named_body_and_head_gives_the_same_results(tmp_path: Path) -> None:
    folder, found = save_model("llama", tmp_path), sequences(4)
    named = open_roles(folder)
    nameless = Roles(Nameless.from_pretrained(folder, dtype=torch.float32).requires_grad_(False).eval(), str(folder))
    assert not nameless.separable
    lora = LoraConfig(rank=4, alpha=8, target_modules=["q_proj", "down_proj"])
    results = []
    for roles in (named, nameless):
        for role in ("policy", "value"):
            roles.add_new(role, lora, 0)
        roles.add_head("value", torch.linspace(-1, 1, 32))
        disturb(roles, "policy", 1)
        roles.train_only(["policy"])
        with roles.training():
            logps = language(roles, "policy").logps(found)
            logps.sum().backward()  # type: ignore[no-untyped-call]
        values = scalar(roles, "value").values(found)
        results.append((logps.detach(), values.detach(), *(p.grad for p in roles.parameters().values())))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "fault", ["no folder", "no weights", "cut weights", "pickled weights", "no config", "not json"]
)
def test_base_that_does_not_load_is_a_one_line_error(tmp_path: Path, fault: str) -> None:
    folder = save_model("llama", tmp_path / "model")
    weights = folder / "model.safetensors"
    if fault == "no folder":
        folder = tmp_path / "elsewhere"
    elif fault == "no weights":
        weights.unlink()
    elif fault == "cut weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif fault == "pickled weights":
        weights.unlink()
        torch.save({}, folder / "pytorch_model.bin")
    elif fault == "no config":
        (folder / "config.json").unlink()
    else:
        (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="does not load") as error:
        load_base(str(folder), revision=None, load_in="fp32", device=CPU)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("gone", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_base_whose_files_lack_weights(tmp_path: Path, gone: str) -> None:
    """transformers only warns, and the run would train on random numbers."""
    folder = save_model("llama", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights[gone]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"lack weights.*1 missing, such as {gone}"):
        load_base(str(folder), revision=None, load_in="fp32", device=CPU)


def test_architecture_other_than_a_language_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTModel"]}')
    with pytest.raises(ModelError, match="does not load"):
        load_base(str(tmp_path), revision=None, load_in="fp32", device=CPU)


@pytest.mark.parametrize(("device", "problem"), [("cuda:0", "no CUDA device"), ("gpu", "unknown device")])
def test_unavailable_device_is_refused(device: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=problem):
        choose_device(device)


def test_auto_selects_the_cpu_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def available(answer: bool) -> Any:
        return lambda: answer

    monkeypatch.setattr(torch.cuda, "is_available", available(False))
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", available(True))
    assert choose_device("auto") == torch.device("cuda")
