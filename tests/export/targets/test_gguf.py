"""GGUF files: an error without llama.cpp's converter, and a check that reads the converter's output back."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from every_architecture import save_small
from exported import Make
from transformers import AutoTokenizer, GPT2Config, LlamaConfig, MistralConfig

from alignment_core.data.rendering.builtin_templates import BUILTIN_TEMPLATES
from alignment_core.errors import ModelError
from alignment_core.export import process
from alignment_core.export.request import Exported, Request
from alignment_core.export.targets import gguf
from alignment_core.export.tokenizer_files import open_renderer


def export(trained: Make, place: Path, base: Path | None = None) -> Exported:
    origin = trained() if base is None else trained(base)
    return process.run(Request(store=origin.store, key=origin.artifact.key, target="gguf", place=place))


def test_missing_converter_is_an_error_with_install_instructions(
    trained: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModelError, match=r"the llama\.cpp converter is not installed.*git clone"):
        export(trained, tmp_path / "out")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="nowhere"):
        export(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_failed_converter_is_reported_with_its_last_output(
    trained: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / gguf.CONVERTER).write_text("raise SystemExit('Model Foo is not supported')")
    monkeypatch.setattr(gguf, "_converter", lambda: tmp_path / gguf.CONVERTER)
    with pytest.raises(ModelError, match=r"llama\.cpp cannot convert the model.*Model Foo is not supported"):
        export(trained, tmp_path / "out")


def test_file_that_cannot_be_read_back_is_refused(
    trained: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys; open(sys.argv[sys.argv.index('--outfile') + 1], 'wb').write(b'GGUF' + bytes(60))"
    (tmp_path / gguf.CONVERTER).write_text(code)
    monkeypatch.setattr(gguf, "_converter", lambda: tmp_path / gguf.CONVERTER)
    with pytest.raises(ModelError, match="cannot be read back"):
        export(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_architecture_that_the_converter_does_not_list_is_refused_before_merging(
    trained: Make, architecture: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys; print('TEXT models:\\n  - LlamaForCausalLM\\n  - Qwen3ForCausalLM', file=sys.stderr)"
    (tmp_path / gguf.CONVERTER).write_text(code)
    monkeypatch.setattr(gguf, "_converter", lambda: tmp_path / gguf.CONVERTER)
    monkeypatch.setattr(gguf.merged, "write", lambda *_: pytest.fail("merged"))
    with pytest.raises(ModelError, match=r"does not know.*got OPTForCausalLM, expected.*bloom, .*llama.*merged"):
        export(trained, tmp_path / "out", architecture("opt"))
    with pytest.raises(pytest.fail.Exception, match="merged"):
        export(trained, tmp_path / "out")


def test_converter_gets_the_token_that_ends_an_answer_and_the_sentencepiece_file(
    trained: Make, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"""
import json, sys, pathlib
if "--outfile" in sys.argv:
    inside = pathlib.Path(sys.argv[1])
    found = [json.loads((inside / name).read_text()) for name in ("config.json", "tokenizer_config.json")]
    seen = [found[0]["eos_token_id"], found[1]["eos_token"], (inside / "tokenizer.model").read_text()]
    pathlib.Path({str(tmp_path / "seen")!r}).write_text(json.dumps(seen))
    open(sys.argv[sys.argv.index("--outfile") + 1], "wb").close()
"""
    (tmp_path / gguf.CONVERTER).write_text(code)
    monkeypatch.setattr(gguf, "_converter", lambda: tmp_path / gguf.CONVERTER)
    monkeypatch.setattr(gguf, "_compare", lambda *_: ({}, ["a note"]))
    # This template ends an answer with <s> = 1, in addition to the tokenizer's </s> = 2.
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (base / "tokenizer.model").write_text("pieces")
    origin = trained(base, template=BUILTIN_TEMPLATES["plain"].replace("eos_token", "'<s>'"))
    template = origin.template
    monkeypatch.setattr(gguf, "metadata", lambda _: {"template": template, "eos": 1})
    done = process.run(Request(store=origin.store, key=origin.artifact.key, target="gguf", place=tmp_path / "out"))
    assert json.loads((tmp_path / "seen").read_text()) == [1, "<s>", "pieces"]
    assert done.notes[0] == "a note"
    assert "names one stop token. In training, </s> also ended an answer" in done.notes[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"template": "other"}, "does not have the chat template of the training"),
        ({"eos": 1}, r"does not have the stop token of the training\. got 1, expected 2"),
        ({"eos": None}, "does not have the stop token of the training"),
    ],
)
def test_chat_template_and_stop_token_of_the_file_are_checked(
    trained: Make, changes: dict[str, Any], message: str | None
) -> None:
    renderer = open_renderer(trained())
    found = {"template": "{{ messages }}", "eos": 2} | changes
    if message is None:
        gguf.check_chat(found, "{{ messages }}", renderer)
        return
    with pytest.raises(ModelError, match=message):
        gguf.check_chat(found, "{{ messages }}", renderer)


def test_limits_that_the_file_lacks_are_named() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 32}
    window = MistralConfig(sliding_window=4096)
    assert gguf.lost_limits(window, MistralConfig(sliding_window=4096)) == []
    assert gguf.lost_limits(window, LlamaConfig()) == [
        "the file, as transformers reads it, has sliding_window None instead of 4096"
    ]
    assert gguf.lost_limits(LlamaConfig(rope_parameters=yarn), LlamaConfig()) == [
        "the file, as transformers reads it, has rope_parameters default instead of yarn"
    ]
    assert gguf.lost_limits(LlamaConfig(), LlamaConfig()) == gguf.lost_limits(GPT2Config(), GPT2Config()) == []


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let llama.cpp's converter take the tokenizer of the tiny model for GPT-2's. It knows tokenizers by their hash."""
    checkout = os.environ["LLAMA_CPP"]
    code = f"""
import runpy, sys
sys.path[:0] = [{checkout!r}, {checkout + "/gguf-py"!r}]
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
runpy.run_path({checkout + "/" + gguf.CONVERTER!r}, run_name="__main__")
"""
    (tmp_path / gguf.CONVERTER).write_text(code)
    monkeypatch.setattr(gguf, "_converter", lambda: tmp_path / gguf.CONVERTER)


@pytest.mark.peer
@pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="LLAMA_CPP must point to a checkout of llama.cpp")
@pytest.mark.usefixtures("real")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("llama", None),
        ("bloom", None),
        ("stablelm", None),
        ("lfm2", None),
        ("mistral", "has sliding_window None instead of 12"),
        ("llama yarn", "has rope_parameters default instead of yarn"),
        ("mixtral", "is not the model that was trained"),
        ("olmo2", "cannot be read back.*olmo2 is not supported yet"),
        ("doge", "does not know models of this architecture"),
    ],
)
def test_families_are_right_or_refused(
    trained: Make, tiny_model: Path, tmp_path: Path, name: str, reason: str | None
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    base = save_small(name, tmp_path / "base", len(tokenizer))
    tokenizer.save_pretrained(base)
    if reason is None:
        assert export(trained, tmp_path / "out", base).found["read_back"]
        return
    with pytest.raises(ModelError, match=reason):
        export(trained, tmp_path / "out", base)


@pytest.mark.peer
@pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="LLAMA_CPP must point to a checkout of llama.cpp")
def test_llama_cpp_converter_writes_the_merged_model(stories260k: Path, trained: Make, tmp_path: Path) -> None:
    template = Path(__file__).parents[3] / "deployments" / "configs" / "stories260k.jinja"
    origin = trained(stories260k, template=template.read_text())
    request = Request(store=origin.store, key=origin.artifact.key, target="gguf", place=tmp_path / "out")
    done = process.run(request)
    assert (tmp_path / "out" / "model.gguf").read_bytes()[:4] == b"GGUF"
    assert isinstance(done.found["read_back"], dict)
    assert not (tmp_path / "out" / "merged").exists()
