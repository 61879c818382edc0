"""Quantized GGUF files, with stand-ins for llama.cpp's programs. The programs themselves are not run here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command import align_here
from exported import Make, put_adapter
from stored import add, named

from alignment_core.artifacts import ArtifactStore
from alignment_core.errors import ConfigError, ModelError
from alignment_core.export import process, request
from alignment_core.export.request import Exported, Request
from alignment_core.export.targets import gguf, quantized
from alignment_core.inference.trained_model import TrainedModel
from alignment_core.plugin_api import TokenSequence

HALF = """
import sys
source, place, kind = sys.argv[1:]
open(place, "wb").write(open(source, "rb").read()[:500])
print("WARNING: 3 of 9 tensor(s) required fallback quantization" if kind == "Q2_K" else "done")
"""
WORDS = """
import sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print(f"window {given['-c']}", open(given["-f"], encoding="utf-8").read(), file=sys.stderr)
open(sys.argv[0] + ".log", "a").write(repr((given["-c"], open(given["-f"], encoding="utf-8").read())) + chr(10))
print("Final estimate: PPL = " + ("8.5000" if "Q4_K_M" in given["-m"] else "8.2500") + " +/- 0.10000")
"""
FAILS = "print('main : invalid ftype Q9_Z'); raise SystemExit(1)"
EMPTY = "import sys; open(sys.argv[2], 'wb')"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is all of `PATH`, and replace the conversion by a file of 1000 bytes."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    converter = tmp_path / gguf.CONVERTER
    converter.write_text("import sys; open(sys.argv[sys.argv.index('--outfile') + 1], 'wb').write(bytes(1000))")
    monkeypatch.setattr(gguf, "_converter", lambda: converter)
    monkeypatch.setattr(gguf, "_check_known", lambda *_: None)
    monkeypatch.setattr(gguf, "_compare", lambda *_: ({"largest_difference": 0.0}, []))
    monkeypatch.setattr(gguf, "check_chat", lambda *_: None)
    monkeypatch.setattr(gguf, "metadata", lambda _: {})
    return folder


def program(folder: Path, name: str, code: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!{sys.executable}\n{code}")
    (folder / name).chmod(0o755)
    return folder / name


def export(origin: TrainedModel, place: Path, kind: str = "Q4_K_M") -> Exported:
    return process.run(Request(store=origin.store, key=origin.artifact.key, target="gguf", place=place, quantize=kind))


def with_data(trained: Make, monkeypatch: pytest.MonkeyPatch, ids: Sequence[int]) -> TrainedModel:
    """Return a model whose run held out one preferred answer with these ids."""
    data = named("d", "ingest")
    origin = trained(parents={"data": data})
    add(ArtifactStore(origin.store), data)
    monkeypatch.setattr(quantized, "read_dataset", lambda _: Held(TokenSequence(tuple(ids), 1)))
    return origin


class Held:
    """A data set with one held-out pair."""

    def __init__(self, chosen: TokenSequence) -> None:
        self.held_out, self.demonstrations = self, ()
        self.preferences = [self]
        self.sequences = {"chosen": chosen}


def test_both_files_are_there_with_their_perplexities(
    trained: Make, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tools, "llama-quantize", HALF)
    measure = program(tools, "llama-perplexity", WORDS)
    ids = [*range(40, 90)] * 4
    origin, out = with_data(trained, monkeypatch, ids), tmp_path / "out"
    done = export(origin, out)
    assert done.found["quantized"] == {
        "bytes": {"16-bit": 1000, "Q4_K_M": 500}, "perplexity": {"16-bit": 8.25, "Q4_K_M": 8.5},
    }  # fmt: skip
    assert done.notes == []
    assert done.use == [f"llama-cli -m {out}/model-Q4_K_M.gguf", f"llama-cli -m {out}/model.gguf"]
    assert {file.name for file in out.iterdir()} == {"model.gguf", "model-Q4_K_M.gguf", "README.md", "export.json"}
    # 200 tokens: the largest window of which two leave half of them spare is 32.
    text = gguf.open_renderer(origin).tokenizer.decode(ids, skip_special_tokens=True)
    assert Path(f"{measure}.log").read_text().splitlines() == [repr(("32", text))] * 2


@pytest.mark.parametrize("tool", [None, WORDS])
def test_unmeasured_perplexity_is_said(
    trained: Make, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str | None
) -> None:
    program(tools, "llama-quantize", HALF)
    if tool is not None:
        program(tools, "llama-perplexity", tool)
    done = export(with_data(trained, monkeypatch, range(30, 50)), tmp_path / "out", "Q2_K")
    assert done.found["quantized"] == {"bytes": {"16-bit": 1000, "Q2_K": 500}}
    reason = "held out fewer than 32 tokens" if tool else "`llama-perplexity` is not installed"
    assert len(done.notes) == 2
    assert done.notes[0] == "llama-quantize: 3 of 9 tensor(s) required fallback quantization"
    assert reason in done.notes[1]


def test_run_without_data_in_the_store_is_said(trained: Make, tools: Path, tmp_path: Path) -> None:
    program(tools, "llama-quantize", HALF)
    program(tools, "llama-perplexity", WORDS)
    assert "the data set of the run is no longer in the store" in export(trained(), tmp_path / "out").notes[0]


def test_missing_quantizer_is_an_error_before_anything_is_merged(
    trained: Make, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = trained()
    monkeypatch.setattr(gguf.merged, "write", lambda *_: pytest.fail("merged"))
    with pytest.raises(ModelError, match=r"`llama-quantize` is not installed.*cmake --build build"):
        export(origin, tmp_path / "out")


def test_programs_in_the_build_of_the_checkout_are_found(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = program(tmp_path / "llama.cpp" / "build" / "bin", "llama-quantize", HALF)
    assert quantized.find_tool("llama-quantize") is None
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "llama.cpp"))
    assert quantized.find_tool("llama-quantize") == there


@pytest.mark.parametrize(
    ("quantizer", "measure", "message"),
    [
        (FAILS, WORDS, "llama.cpp cannot quantize the model. got main : invalid ftype Q9_Z"),
        (EMPTY, WORDS, "`llama-quantize` wrote no smaller file"),
        (HALF, "print('nothing')", "`llama-perplexity` reports no perplexity. got nothing"),
        (HALF, "print('Final estimate: PPL = nan +/- nan')", "`llama-perplexity` reports no perplexity"),
        (HALF, FAILS, "`llama-perplexity` cannot measure model.gguf"),
    ],
)
def test_failing_programs_leave_nothing(
    trained: Make, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantizer: str, measure: str,
    message: str,
) -> None:  # fmt: skip
    program(tools, "llama-quantize", quantizer)
    program(tools, "llama-perplexity", measure)
    with pytest.raises(ModelError) as error:
        export(with_data(trained, monkeypatch, range(30, 230)), tmp_path / "out")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("target", "kind", "message"),
    [("merged", "Q4_K_M", "only GGUF files are quantized"), ("gguf", "../x", "this is no type of llama.cpp")],
)
def test_wrong_requests_are_refused(tmp_path: Path, target: Any, kind: str, message: str) -> None:
    wanted = Request(store=tmp_path, key="k", target=target, place=tmp_path / "out", quantize=kind)
    with pytest.raises(ConfigError, match=message):
        request.export(wanted)


def test_command_passes_the_type(tmp_path: Path, tiny_model: Path) -> None:
    origin = put_adapter(tmp_path / "store", tiny_model)
    arguments = ("--to", "merged", "--store", str(origin.store), "--out", str(tmp_path / "out"), "--quantize", "Q4_K_M")
    done = align_here("export", origin.artifact.key, *arguments)
    assert (done.returncode, "--quantize: only GGUF files are quantized" in done.stderr) == (2, True)
