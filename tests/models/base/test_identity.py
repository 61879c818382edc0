"""A model's identity depends only on the content of the relevant files."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from alignment_core.errors import ModelError
from alignment_core.models.base.identity import ModelIdentity, check_classifier, has_chat_template, model_identity

COMMIT = "0" * 39 + "1"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    import numpy

    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("about")
    save_file({"w": numpy.ones(3, dtype="float32")}, folder / "model.safetensors")
    return folder


def identity(base: Path | str, revision: str | None = None) -> ModelIdentity:
    return model_identity(str(base), revision)


def test_location_times_and_other_files_do_not_matter(model: Path, tmp_path: Path) -> None:
    before = identity(model)
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    os.utime(copy / "model.safetensors", (1, 1))
    (copy / "README.md").write_text("another text")
    after = identity(copy)
    assert (before.weights, before.tokenizer) == (after.weights, after.tokenizer)
    assert (before.name, before.path, before.revision) == ("my-model", str(model), None)


@pytest.mark.parametrize(
    ("name", "changes_weights", "changes_tokenizer"),
    [
        ("model.safetensors", True, False),
        ("config.json", True, False),
        ("tokenizer.json", False, True),
        ("generation_config.json", False, True),
        ("chat_template.jinja", False, True),
        ("README.md", False, False),
    ],
)
def test_effect_of_each_file(model: Path, name: str, changes_weights: bool, changes_tokenizer: bool) -> None:
    before = identity(model)
    with (model / name).open("a") as file:
        file.write(" ")
    after = identity(model)
    assert (before.weights != after.weights) is changes_weights
    assert (before.tokenizer != after.tokenizer) is changes_tokenizer


def test_relative_folder_is_made_absolute(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    assert identity("my-model").path == str(model)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        identity(tmp_path / "nowhere")


def test_folder_without_config(model: Path) -> None:
    (model / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        identity(model)


def test_pickled_weights_are_refused(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled.*save_pretrained"):
        identity(model)


def test_revision_of_a_folder_is_refused(model: Path) -> None:
    with pytest.raises(ModelError, match="no revisions"):
        identity(model, revision="main")


def test_hub_commit_needs_no_network() -> None:
    found = identity("owner/some-model", revision=COMMIT)
    assert found == ModelIdentity(
        "some-model", "owner/some-model", COMMIT, f"owner/some-model@{COMMIT}", f"owner/some-model@{COMMIT}"
    )


def test_downloaded_commit_is_used_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The layout of the hub's cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    repo = tmp_path / "models--owner--some-model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "snapshots" / COMMIT).mkdir(parents=True)
    (repo / "snapshots" / COMMIT / "config.json").write_text(json.dumps({"model_type": "llama"}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert identity("owner/some-model").revision == COMMIT
    assert COMMIT in caplog.text
    with pytest.raises(ModelError, match="the Hub cannot be reached"):
        identity("owner/other-model")


@pytest.mark.parametrize("template", [None, "tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}, None),
        # transformers writes no labels if there are two, which is its default.
        ({"architectures": ["LlamaForSequenceClassification"]}, "2 labels"),
        ({"architectures": ["LlamaForCausalLM"], "num_labels": 1}, "LlamaForCausalLM"),
        ({"num_labels": 1}, "without `architectures`"),
    ],
)
def test_hub_classifier_is_checked_by_its_config(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: dict[str, Any],
    problem: str | None,
    template: str | None,
) -> None:
    snapshot = tmp_path / "models--owner--judge" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(config))
    if template is not None:
        (snapshot / template).write_text(json.dumps({"chat_template": "{{ messages }}"}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = identity("owner/judge", revision=COMMIT)
    assert has_chat_template(found) is (template is not None)
    if problem is None:
        check_classifier(found, "reward.model")
        return
    with pytest.raises(ModelError) as error:
        check_classifier(found, "reward.model")
    assert error.value.where == "reward.model"
    assert problem in str(error.value)
