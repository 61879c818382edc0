"""Only LoRA adapters of linear layers can be gone on from. Their identity is their content."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from classifiers import edit_json
from engine import disturb, open_roles
from safetensors.torch import load_file, save_file

from alignment_core.config import LoraConfig
from alignment_core.errors import ModelError
from alignment_core.models.base.adapter_identity import AdapterIdentity, adapter_identity

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="session")
def saved(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an adapter with rank 4 on two kinds of layers."""
    roles = open_roles(tiny_model)
    roles.add_new("policy", LoraConfig(rank=4, alpha=8, target_modules=["q_proj", "v_proj"]), 1)
    disturb(roles, "policy", 1)
    folder = tmp_path_factory.mktemp("adapter")
    roles.save("policy", folder)
    return folder


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """Return a copy of the adapter that tests may change."""
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


def identity(folder: Path) -> AdapterIdentity:
    return adapter_identity(str(folder), None)


def test_shape_and_base_are_read(adapter: Path, tiny_model: Path) -> None:
    found = identity(adapter)
    assert found.lora == LoraConfig(rank=4, alpha=8, target_modules=["q_proj", "v_proj"])
    assert (found.named_base, found.chat_template, found.path) == (str(tiny_model), None, str(adapter))


def test_patterns_are_described_by_the_largest(adapter: Path) -> None:
    edit_json(adapter / CONFIG, rank_pattern={"q_proj": 16}, target_modules=r".*\.[qv]_proj")
    assert identity(adapter).lora == LoraConfig(rank=16, alpha=8, target_modules="all-linear")


def test_content_decides_the_identity(adapter: Path) -> None:
    before = identity(adapter)
    (adapter / "README.md").write_text("about")
    assert identity(adapter).content == before.content
    weights = load_file(adapter / WEIGHTS)
    weights[min(weights)] += 1
    save_file(weights, adapter / WEIGHTS)
    assert identity(adapter).content != before.content


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("chat_template.jinja", "{{ 1 }}", "{{ 1 }}"),
        ("tokenizer_config.json", json.dumps({"chat_template": "{{ 2 }}"}), "{{ 2 }}"),
        (
            "tokenizer_config.json",
            json.dumps({"chat_template": [{"name": "x", "template": ""}, {"name": "default", "template": "{{ 3 }}"}]}),
            "{{ 3 }}",
        ),
    ],
)
def test_chat_template_beside_the_adapter(adapter: Path, file: str, content: str, expected: str) -> None:
    (adapter / file).write_text(content)
    assert identity(adapter).chat_template == expected


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"task_type": "SEQ_CLS"}, "LORA for SEQ_CLS"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa"),  # it changes the base model's weights
        ({"a_method_of_next_year": {"x": 1}}, "a_method_of_next_year"),
    ],
)
def test_other_methods_are_refused_by_name(adapter: Path, change: dict[str, Any], problem: str) -> None:
    edit_json(adapter / CONFIG, **change)
    with pytest.raises(ModelError, match=problem):
        identity(adapter)


@pytest.mark.parametrize("name", ["base_model.model.lm_head.weight", "base_model.model.x.lora_embedding_A"])
def test_other_weights_are_refused_by_name(adapter: Path, name: str) -> None:
    save_file(load_file(adapter / WEIGHTS) | {name: torch.zeros(2)}, adapter / WEIGHTS)
    with pytest.raises(ModelError, match=f"1 such weights in .* such as {name}"):
        identity(adapter)


def test_pickled_adapter_is_converted_by_the_command(adapter: Path) -> None:
    weights = load_file(adapter / WEIGHTS)
    torch.save(weights, adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="pickled") as caught:
        identity(adapter)
    assert caught.value.do is not None
    exec(json.loads(caught.value.do.partition("python -c ")[2]), {})
    again = load_file(adapter / WEIGHTS)
    assert all(torch.equal(weights[name], again[name]) for name in weights | again)


def test_adapter_on_the_hub(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0" * 39 + "2"
    # The layout of the hub's cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    repo = tmp_path / "hub" / "models--owner--my-lora"
    shutil.copytree(adapter, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = adapter_identity("owner/my-lora", None)
    assert (found.path, found.revision, found.content) == ("owner/my-lora", commit, f"owner/my-lora@{commit}")
    assert found.lora.rank == 4


def test_folders_without_an_adapter(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"adapter_config\.json is missing"):
        identity(tiny_model)
    with pytest.raises(ModelError, match="no such folder"):
        identity(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="no revisions"):
        adapter_identity(str(tiny_model), "main")
