"""Policy, reference, reward and value model as adapters on one base: exact, independent, saved as standard files."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import save_model
from engine import LORA, PAD, disturb, language, naive_logps, open_roles, saved_adapter, scalar, sequences
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from torch import Tensor

from alignment_core import losses
from alignment_core.config import LoadIn, LoraConfig
from alignment_core.errors import ConfigError, ModelError
from alignment_core.models.base.loading import keep_linear4bit_differentiable, quantization
from alignment_core.models.roles.shared_base import Roles

PRECISIONS: list[LoadIn] = ["fp32", "bf16", "nf4", "int8"]


def policy_and_reference(path: Path, sft: Path | None, load_in: LoadIn) -> Roles:
    """Add both roles as the optimizer stage does."""
    roles = open_roles(path, load_in)
    if sft:
        roles.add_saved("policy", sft)
        roles.add_saved("reference", sft)
    else:
        roles.add_new("policy", LORA, 0)
        roles.add_base("reference")
    roles.train_only(["policy"])
    return roles


@pytest.mark.parametrize("load_in", PRECISIONS)
@pytest.mark.parametrize("after", ["SFT", "nothing"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_policy_starts_equal_to_the_live_reference(
    tiny_model: Path, tmp_path: Path, load_in: LoadIn, after: str, checkpointing: bool
) -> None:
    sft = saved_adapter(tiny_model, tmp_path, load_in=load_in) if after == "SFT" else None
    roles = policy_and_reference(tiny_model, sft, load_in)
    roles.checkpoint_layers(checkpointing)
    # The budget is smaller than the pairs, as for a single row that exceeds it.
    policy, reference = language(roles, "policy", 64), language(roles, "reference", 64)
    pairs = sequences(6, completion=40)
    with roles.training():
        ours, theirs = policy.token_logps(pairs, 0.7), reference.token_logps(pairs, 0.7)
        chosen, rejected = (policy.logps(pairs) - reference.logps(pairs)).chunk(2)
    assert ours.logps.requires_grad
    assert not theirs.logps.requires_grad
    assert torch.equal(ours.logps, theirs.logps)
    assert torch.equal(ours.entropy, theirs.entropy)
    ln2 = torch.tensor(math.log(2))
    assert all(loss == ln2 for loss in losses.dpo(chosen, rejected, beta=0.1))


@pytest.fixture(scope="module")
def four_adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Different adapters: an SFT model, a policy that differs from it, and a reward model with its head."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        "reference": saved_adapter(tiny_model, root / "sft", seed=1),
        "policy": saved_adapter(tiny_model, root / "policy", seed=2),
        "reward": saved_adapter(tiny_model, root / "reward", seed=3, head=True),
    }


def four_roles(path: Path, adapters: dict[str, Path], load_in: LoadIn = "fp32") -> Roles:
    roles = open_roles(path, load_in)
    for role, folder in adapters.items():
        roles.add_saved(role, folder)
    roles.add_copy("value", of="reward")
    roles.train_only(["policy", "value"])
    return roles


def gradients(roles: Roles, role: str) -> list[Tensor]:
    found = [parameter.grad for _, parameter in roles.adapter_parameters([role])]
    if role in roles.heads:
        found.append(roles.head_of(role).weight.grad)
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize("active_at_backward", [None, "policy", "reference", "reward", "value"])
def test_roles_in_one_loss_equal_separate_models(
    tiny_model: Path, four_adapters: dict[str, Path], active_at_backward: str | None
) -> None:
    """Compare one loss over policy, value and live reference, with checkpointing, with a separate model per role."""
    found = sequences(5)

    def policy_loss(logps: Tensor, reference: Tensor) -> Tensor:
        return ((logps - reference) ** 2).sum() / 100

    shared = four_roles(tiny_model, four_adapters)
    shared.checkpoint_layers(True)
    with shared.training():
        loss = policy_loss(language(shared, "policy").logps(found), language(shared, "reference").logps(found))
        loss = loss + (scalar(shared, "value").values(found) ** 2).sum()
        if active_at_backward is None:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            with shared.use(active_at_backward):
                loss.backward()  # type: ignore[no-untyped-call]

    def alone(role: str, adapter: str) -> Roles:
        roles = open_roles(tiny_model)
        roles.add_saved(role, four_adapters[adapter])
        return roles

    frozen = alone("reference", "reference")
    reference = language(frozen, "reference").logps(found)
    policy = alone("policy", "policy")
    policy.train_only(["policy"])
    policy_loss(language(policy, "policy").logps(found), reference).backward()  # type: ignore[no-untyped-call]
    value = alone("value", "reward")
    value.train_only(["value"])
    (scalar(value, "value").values(found) ** 2).sum().backward()  # type: ignore[no-untyped-call]

    for role, single in (("policy", policy), ("value", value)):
        for ours, theirs in zip(gradients(shared, role), gradients(single, role), strict=True):
            assert theirs.abs().max() > 0
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    trained = {id(parameter) for parameter in shared.parameters().values()}
    others = [*shared.model.parameters(), *shared.heads.parameters()]
    assert all(parameter.grad is None for parameter in others if id(parameter) not in trained)


def outputs(roles: Roles) -> dict[str, Tensor]:
    found = sequences(4, seed=7)
    with torch.no_grad():
        return {
            "policy": language(roles, "policy").logps(found),
            "reference": language(roles, "reference").logps(found),
            "reward": scalar(roles, "reward").scores(found),
            "value": scalar(roles, "value").values(found),
        }


@pytest.mark.parametrize("load_in", ["fp32", "nf4"])
def test_training_one_role_leaves_the_others_bit_identical(
    tiny_model: Path, four_adapters: dict[str, Path], load_in: LoadIn
) -> None:
    roles = four_roles(tiny_model, four_adapters, load_in)
    before = outputs(roles)
    optimizer = torch.optim.AdamW(roles.parameters().values(), lr=1e-2)
    with roles.training():
        language(roles, "policy").logps(sequences(4)).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    after = outputs(roles)
    assert not torch.equal(before.pop("policy"), after.pop("policy"))
    for role, output in before.items():
        assert torch.equal(output, after[role]), role


def test_only_trained_roles_have_parameters(tiny_model: Path, four_adapters: dict[str, Path]) -> None:
    roles = four_roles(tiny_model, four_adapters)
    # Two factors for each of seven linear modules in two layers, for two roles, plus the value model's head.
    assert len(roles.parameters()) == 2 * 7 * 2 * 2 + 1
    assert all(".policy." in name or ".value." in name or name == "heads.value.weight" for name in roles.parameters())


def test_a_role_without_adapter_is_the_bare_base(tiny_model: Path, four_adapters: dict[str, Path]) -> None:
    roles, found = four_roles(tiny_model, four_adapters), sequences(4)
    roles.add_base("base")
    expected = naive_logps(open_roles(tiny_model).model, found)
    for _ in range(2):
        assert (language(roles, "policy").logps(found).double() - expected).abs().max() > 0.1
        torch.testing.assert_close(language(roles, "base").logps(found).double(), expected, rtol=1e-5, atol=1e-4)


def test_nested_use_restores_the_outer_role(tiny_model: Path, four_adapters: dict[str, Path]) -> None:
    roles = four_roles(tiny_model, four_adapters)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad(), roles.use("policy"):
        expected = roles.model(ids).logits
        with roles.use("reference"):
            assert not torch.equal(roles.model(ids).logits, expected)
        assert torch.equal(roles.model(ids).logits, expected)


def test_copy_starts_equal_and_is_independent(tiny_model: Path, four_adapters: dict[str, Path]) -> None:
    roles = four_roles(tiny_model, four_adapters)
    found = sequences(4)
    assert torch.equal(scalar(roles, "reward").scores(found), scalar(roles, "value").scores(found).detach())
    disturb(roles, "value", 9)
    assert not torch.equal(scalar(roles, "reward").scores(found), scalar(roles, "value").scores(found).detach())


@pytest.mark.parametrize("load_in", ["nf4", "int8"])
def test_every_adapter_weight_gets_a_gradient_after_a_no_grad_forward(tiny_model: Path, load_in: LoadIn) -> None:
    """Without gradients, bitsandbytes repacks 4-bit weights on CPUs with AVX512-BF16, which removes their autograd."""
    roles = open_roles(tiny_model, load_in)
    roles.add_new("policy", LORA, 0)
    disturb(roles, "policy", 1)
    roles.train_only(["policy"])
    policy, found = language(roles, "policy"), sequences(4)
    with torch.no_grad():
        before = policy.logps(found)
    with roles.training():
        logps = policy.logps(found)
        logps.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logps.detach(), before)
    for name, parameter in roles.parameters().items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_adapter_dropout_acts_only_on_trained_roles_in_training(tiny_model: Path, tmp_path: Path, dora: bool) -> None:
    lora = LoraConfig(rank=4, alpha=8, dropout=0.5, dora=dora)
    roles = policy_and_reference(tiny_model, saved_adapter(tiny_model, tmp_path, lora=lora), "fp32")
    policy, reference, found = language(roles, "policy"), language(roles, "reference"), sequences(4)
    still = policy.logps(found).detach(), reference.logps(found)
    assert torch.equal(*still)
    with roles.training():
        torch.manual_seed(1)
        first = policy.logps(found).detach()
        second = policy.logps(found).detach()
        torch.manual_seed(1)
        again = policy.logps(found).detach()
        torch.testing.assert_close(reference.logps(found), still[1], rtol=0, atol=1e-4 if dora else 0)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)
    assert torch.equal(policy.logps(found).detach(), still[0])


def test_recomputed_dropout_equals_that_of_the_forward(tiny_model: Path, tmp_path: Path) -> None:
    lora = LoraConfig(rank=4, alpha=8, dropout=0.5)
    folder = saved_adapter(tiny_model, tmp_path, lora=lora)
    results = []
    for checkpointing in (False, True):
        roles = policy_and_reference(tiny_model, folder, "fp32")
        roles.checkpoint_layers(checkpointing)
        torch.manual_seed(5)
        with roles.training():
            language(roles, "policy").logps(sequences(4)).sum().backward()  # type: ignore[no-untyped-call]
        results.append(gradients(roles, "policy"))
    for kept, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(kept, recomputed, rtol=1e-5, atol=1e-6)


def test_layers_are_recomputed_with_checkpointing(tmp_path: Path) -> None:
    """With checkpointing a layer's forward runs again in backward. Without gradients it runs once."""
    roles = open_roles(save_model("llama", tmp_path, num_hidden_layers=5))
    roles.add_new("policy", LORA, 0)
    roles.train_only(["policy"])
    calls: list[int] = []
    for number, layer in enumerate(roles.model.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    found = []
    for checkpointing, recomputed in ((False, []), (4, [4, 0]), (2, [4, 2, 0]), (True, [4, 3, 2, 1, 0])):
        roles.checkpoint_layers(checkpointing)
        calls.clear()
        with roles.training():
            logps = language(roles, "policy").logps(sequences(2))
            logps.sum().backward()  # type: ignore[no-untyped-call]
        assert calls == [0, 1, 2, 3, 4, *recomputed]
        found.append([logps.detach(), *gradients(roles, "policy")])
        roles.model.zero_grad()
    for one in found[1:]:
        assert all(torch.equal(tensor, other) for tensor, other in zip(one, found[0], strict=True))
    calls.clear()
    with torch.no_grad():
        language(roles, "policy").logps(sequences(2))
    assert calls == [0, 1, 2, 3, 4]


LORAS = {
    "LoRA": LORA,
    "rsLoRA": LoraConfig(rank=4, alpha=8, rslora=True),
    "DoRA": LoraConfig(rank=4, alpha=8, dora=True),
    "attention only": LoraConfig(rank=3, alpha=5, target_modules=["q_proj", "v_proj"]),
}


# PEFT reads a property that transformers 5.2x deprecates.
plain_peft = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@plain_peft
@pytest.mark.parametrize("name", LORAS)
@pytest.mark.parametrize("load_in", ["fp32", "nf4"])
def test_a_saved_role_loads_in_plain_peft(tiny_model: Path, tmp_path: Path, name: str, load_in: LoadIn) -> None:
    roles = open_roles(tiny_model, load_in)
    roles.add_new("other", LORA, 5)
    roles.add_new("policy", LORAS[name], 0)
    disturb(roles, "policy", 1)
    roles.save("policy", tmp_path)
    plain = load_plain(AutoPeftModelForCausalLM, tmp_path, load_in)
    found = sequences(4)
    expected = naive_logps(plain, found)
    assert (expected - naive_logps(open_roles(tiny_model, load_in).model, found)).abs().max() > 0.1
    torch.testing.assert_close(language(roles, "policy").logps(found).double(), expected, rtol=1e-5, atol=1e-4)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_model)
    assert config["task_type"] == "CAUSAL_LM"
    assert (config["r"], config["lora_alpha"]) == (LORAS[name].rank, LORAS[name].alpha)
    assert (config["use_rslora"], config["use_dora"]) == (name == "rsLoRA", name == "DoRA")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def load_plain(kind: Any, folder: Path, load_in: LoadIn, **more: Any) -> Any:
    """Load with PEFT alone, as a user without this project does, with the base's quantization."""
    loaded = kind.from_pretrained(
        str(folder), quantization_config=quantization(load_in, torch.float32), dtype=torch.float32, **more
    )
    # On CPUs with AVX512-BF16, bitsandbytes would repack the weights, which rounds them and needs wide layers.
    keep_linear4bit_differentiable(loaded)
    return loaded.eval()


@plain_peft
@pytest.mark.parametrize("load_in", ["fp32", "nf4"])
def test_a_reward_model_loads_as_a_plain_sequence_classifier(tiny_model: Path, tmp_path: Path, load_in: LoadIn) -> None:
    roles = open_roles(tiny_model, load_in)
    roles.add_new("reward", LORA, 0)
    roles.add_head("reward")
    disturb(roles, "reward", 1, scale=0.3)
    roles.save("reward", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
    plain = load_plain(AutoPeftModelForSequenceClassification, tmp_path, load_in, num_labels=1)
    found = sequences(5)
    width = max(len(sequence.ids) for sequence in found)
    ids = torch.tensor([[*sequence.ids, *[PAD] * (width - len(sequence.ids))] for sequence in found])
    with torch.no_grad():
        expected = plain(input_ids=ids, attention_mask=(ids != PAD).long()).logits[:, 0]
    ours = scalar(roles, "reward").scores(found)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert ours.std() > 0.1
    again = open_roles(tiny_model, load_in)
    again.add_saved("reward", tmp_path)
    assert torch.equal(scalar(again, "reward").scores(found), ours)


def bytes_of(roles: Roles) -> int:
    """Return the total bytes of all distinct storages."""
    storages = {}
    for tensor in [*roles.model.parameters(), *roles.model.buffers(), *roles.heads.parameters()]:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def test_four_roles_share_one_base_with_four_adapters_and_two_heads(
    tiny_model: Path, four_adapters: dict[str, Path]
) -> None:
    base = bytes_of(open_roles(tiny_model, "nf4"))
    roles = four_roles(tiny_model, four_adapters, "nf4")
    # Rank 4 on q, o: 32→32, k, v: 32→16, gate, up: 32→64, down: 64→32, in two layers, float32.
    adapter = 2 * 4 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    assert bytes_of(roles) == base + 4 * adapter + 2 * 4 * 32


@pytest.mark.parametrize(
    ("targets", "missing"),
    [(["q_proj", "lm_head"], "lm_head"), (["q_prj"], "q_prj"), (["v_proj", "embed_tokens"], "embed")],
)
def test_a_target_module_that_would_not_be_trained_is_refused(
    tiny_model: Path, targets: list[str], missing: str
) -> None:
    with pytest.raises(ConfigError, match=missing) as error:
        open_roles(tiny_model).add_new("policy", LoraConfig(target_modules=targets), 0)
    assert "q_proj" in str(error.value.expected)


def test_an_adapter_of_another_base_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    saved_adapter(tiny_model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    roles = open_roles(tiny_model)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"r": 2}))
    with pytest.raises(ModelError, match="does not fit"):
        roles.add_saved("policy", tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj", "k_proj"]}))
    with pytest.raises(ModelError, match="20 weights"):
        open_roles(tiny_model).add_saved("policy", tmp_path)


def test_quantized_bases_log_nothing_per_layer(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        roles = open_roles(tiny_model, "int8")
        roles.add_new("policy", LORA, 0)
        language(roles, "policy").logps(sequences(2))
    assert [record.message for record in caplog.records if record.name.startswith("bitsandbytes")] == []


def test_a_role_without_an_adapter_has_nothing_to_save_or_copy(tiny_model: Path, tmp_path: Path) -> None:
    roles = open_roles(tiny_model)
    roles.add_base("reference")
    with pytest.raises(ValueError, match="has no adapter"):
        roles.save("reference", tmp_path)
    with pytest.raises(ValueError, match="has no adapter"):
        roles.add_copy("policy", of="reference")
