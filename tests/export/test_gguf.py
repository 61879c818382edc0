"""GGUF files: refused without llama.cpp's converter, and what a converter writes is read back before it is believed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from exported import Make

from alignment_core.errors import ModelError
from alignment_core.export import child, gguf
from alignment_core.export.exporting import Request


def export(trained: Make, place: Path) -> object:
    origin = trained()
    return child.run(Request(store=origin.store, key=origin.artifact.key, target="gguf", place=place))


def test_without_the_converter_it_is_refused_with_what_to_install(
    trained: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModelError, match=r"written by llama\.cpp's converter, which is not here.*git clone"):
        export(trained, tmp_path / "out")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="nowhere"):
        export(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_converter_that_fails_is_told_in_its_last_words(
    trained: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / gguf.CONVERTER).write_text("raise SystemExit('Model Foo is not supported')")
    monkeypatch.setattr(gguf, "_converter", lambda: tmp_path / gguf.CONVERTER)
    with pytest.raises(ModelError, match=r"does not take the model.*Model Foo is not supported"):
        export(trained, tmp_path / "out")


def test_file_that_cannot_be_read_back_is_not_believed(
    trained: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys; open(sys.argv[sys.argv.index('--outfile') + 1], 'wb').write(b'GGUF' + bytes(60))"
    (tmp_path / gguf.CONVERTER).write_text(code)
    monkeypatch.setattr(gguf, "_converter", lambda: tmp_path / gguf.CONVERTER)
    with pytest.raises(ModelError, match="cannot be read back"):
        export(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.peer
@pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="needs a checkout of llama.cpp, named by LLAMA_CPP")
def test_llama_cpps_own_converter_writes_the_merged_model(stories260k: Path, trained: Make, tmp_path: Path) -> None:
    template = Path(__file__).parents[2] / "deployments" / "configs" / "stories260k.jinja"
    origin = trained(stories260k, template=template.read_text())
    request = Request(store=origin.store, key=origin.artifact.key, target="gguf", place=tmp_path / "out")
    done = child.run(request)
    assert (tmp_path / "out" / "model.gguf").read_bytes()[:4] == b"GGUF"
    assert isinstance(done.found["read_back"], dict)
    assert not (tmp_path / "out" / "merged").exists()
