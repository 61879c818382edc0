"""GGUF files: an error without llama.cpp's converter, and a check that reads the converter's output back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from exported import Make

from alignment_core.errors import ModelError
from alignment_core.export import process
from alignment_core.export.request import Request
from alignment_core.export.targets import gguf


def export(trained: Make, place: Path) -> object:
    origin = trained()
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
