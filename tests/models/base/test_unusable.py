"""Folders and files that are no model to train are refused by name, with what to do. Commands that they name work."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignment_core.errors import ModelError
from alignment_core.models.base.identity import model_identity


def refusal(place: Path, where: str = "model.base") -> ModelError:
    with pytest.raises(ModelError) as caught:
        model_identity(str(place), None, where)
    return caught.value


def run_command(error: ModelError, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the `python -c "…"` that an error names, in this process and in `folder`."""
    found = re.search(r'python -c (".*")', error.do or "")
    assert found is not None
    monkeypatch.chdir(folder)
    exec(json.loads(found[1]), {})


@pytest.fixture
def pickled(tiny_model: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny model whose weights are pickled."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "it's pickled"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_pickled_weights_are_converted_by_the_command(
    pickled: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = refusal(pickled)
    assert error.what.startswith("the weights are pickled")
    (tmp_path / "out").mkdir()
    run_command(error, tmp_path / "out", monkeypatch)
    found = tmp_path / "out" / "it's pickled-safetensors"
    assert model_identity(str(found), None).name == "it's pickled-safetensors"
    assert (found / "tokenizer.json").is_file()
    before, after = load_file(tiny_model / "model.safetensors"), load_file(found / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_command_runs_no_code_of_a_pickle(pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"w": Evil()}, pickled / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"Weights only|weights_only"):
        run_command(refusal(pickled), tmp_path, monkeypatch)
    assert not (tmp_path / "ran").exists()


def test_command_for_a_reward_model_loads_a_classifier(pickled: Path) -> None:
    assert "AutoModelForSequenceClassification as M" in str(refusal(pickled, "reward.model"))


@pytest.mark.parametrize("named", ["folder", "file"])
def test_gguf_is_refused_with_the_setting_that_unpacks_it(tmp_path: Path, named: str) -> None:
    (tmp_path / "small-Q4_K_M.gguf").write_bytes(b"GGUF")
    error = refusal(tmp_path if named == "folder" else tmp_path / "small-Q4_K_M.gguf")
    assert f"`model.base: gguf:{tmp_path}/small-Q4_K_M.gguf`" in str(error)
    assert "not this" in refusal(tmp_path / "small-Q4_K_M.gguf", "reward.model").what


def test_only_an_adapter_names_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert refusal(tmp_path).do == f"To go on from it, set `model.base: owner/base` and `model.adapter: {tmp_path}`"
    assert "merge_and_unload" in str(refusal(tmp_path, "reward.model"))
    (tmp_path / "config.json").write_text("{}")  # some training tools put it there
    assert "model.adapter" in str(refusal(tmp_path))


def test_file_of_a_model_and_folder_above_it_name_the_folder(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "checkpoint-8"))
    assert f"such as {folder}" in str(refusal(folder / "model.safetensors"))
    assert f"such as {folder}" in str(refusal(tmp_path))


def test_weights_without_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "consolidated.00.pth").write_bytes(b"")
    assert "config.json, which says what they are, is missing" in str(refusal(tmp_path))


def test_adapter_beside_the_weights_is_not_part_of_the_model(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    before = model_identity(str(folder), None)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    assert model_identity(str(folder), None) == before


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["config.json", "model.safetensors"], None),
        (["config.json", "model-00001-of-00002.safetensors", "original/consolidated.00.pth"], None),
        (["adapter_config.json", "adapter_model.safetensors"], r"only an adapter.*`model.adapter: owner/model`"),
        (["config.json", "pytorch_model.bin"], r"pickled.*from_pretrained\('owner/model'"),
        (["README.md", "model-Q4_K_M.gguf"], "GGUF"),
        (["config.json"], "no weights"),
    ],
)
def test_repository_on_the_hub(monkeypatch: pytest.MonkeyPatch, names: list[str], problem: str | None) -> None:
    files = [SimpleNamespace(rfilename=name) for name in names]
    listed = SimpleNamespace(sha="0" * 40, siblings=files)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: listed)
    if problem is None:
        assert model_identity("owner/model", None).revision == listed.sha
        return
    with pytest.raises(ModelError, match=problem):
        model_identity("owner/model", None)
