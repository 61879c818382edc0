"""Target `gguf`: one file for llama.cpp and programs built on it, written by llama.cpp's converter."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from alignment_core.data.rendering.renderer import Renderer
from alignment_core.errors import ModelError
from alignment_core.export import parity
from alignment_core.export.targets import merged, quantized
from alignment_core.export.targets.quantized import LLAMA_CPP
from alignment_core.export.tokenizer_files import open_renderer
from alignment_core.inference.trained_model import TrainedModel
from alignment_core.models.base.identity import model_file, model_identity
from alignment_core.plugin_api import TokenSequence

FILE = "model.gguf"
CONVERTER = "convert_hf_to_gguf.py"
INSTALL = "pip install gguf sentencepiece"
SENTENCEPIECE = "tokenizer.model"
KNOWN = re.compile(r"- (\w+)$", re.MULTILINE)
"""A line of the converter's list of architectures."""
FAMILIES = sorted(set(GGUF_SUPPORTED_ARCHITECTURES) - {"general", "tokenizer", "t5", "umt5"})
"""Families whose GGUF files transformers reads back."""
LIMITS = ("sliding_window", "attention_chunk_size", "layer_types", "rope_parameters")
"""Settings of a model whose loss shows only in texts that are long enough."""
MERGED = "Export with `--to merged`"
TYPES = {"bfloat16": "bf16", "float16": "f16"}


def write(origin: TrainedModel, folder: Path, kind: str | None = None) -> dict[str, Any]:
    """Merge, convert, read the file back and compare its logits with the merged model's.

    Args:
        origin: the model to export.
        folder: the folder for the file.
        kind: the type of a second, quantized file, such as `Q4_K_M`; None for none.

    Raises:
        ModelError: a program of llama.cpp is missing, it cannot convert the model, or the converted model differs.
    """
    converter = _converter()
    if kind is not None:
        quantized.require_quantizer()
    _check_known(origin, converter)
    inside = folder / "merged"
    inside.mkdir()
    found = merged.write(origin, inside)
    renderer = open_renderer(origin)
    template = (inside / "chat_template.jinja").read_text(encoding="utf-8")
    _name_stop_token(inside, renderer)
    _copy_sentencepiece(origin, inside)
    command = [sys.executable, str(converter), str(inside), "--outfile", str(folder / FILE)]
    done = subprocess.run([*command, "--outtype", TYPES[found["dtype"]]], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit {done.returncode}")
        raise ModelError("llama.cpp cannot convert the model", where=str(converter), got=reason)
    found["read_back"], notes = _compare(origin, inside, folder, found["before_rounding"]["tolerance"])
    check_chat(metadata(folder / FILE), template, renderer)
    shutil.rmtree(inside)
    found["notes"] = [*notes, *_other_stops(renderer)]
    if kind is not None:
        small = quantized.write(origin, folder / FILE, kind)
        found["notes"] += small.pop("notes")
        found["quantized"] = small
    return found


def metadata(file: Path) -> dict[str, Any]:
    """Return the chat template and the special tokens that llama.cpp reads from the file."""
    fields = importlib.import_module("gguf").GGUFReader(file).fields
    found: dict[str, Any] = {}
    if (template := fields.get("tokenizer.chat_template")) is not None:
        found["template"] = bytes(template.parts[template.data[0]]).decode("utf-8")
    for name in ("bos", "eos"):
        if (token := fields.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            found[name] = int(token.parts[token.data[0]][0])
    return found


def check_chat(found: dict[str, Any], template: str, renderer: Renderer) -> None:
    """Check that llama.cpp finds the chat template of the training and the token that ends an answer in it.

    Raises:
        ModelError: it finds others.
    """
    if found.get("template") != template:
        raise ModelError("the converted file does not have the chat template of the training", where=FILE)
    if found.get("eos") != renderer.stop_ids[0]:
        raise ModelError(
            "the converted file does not have the stop token of the training",
            where=FILE,
            got=found.get("eos"),
            expected=renderer.stop_ids[0],
        )


def _check_known(origin: TrainedModel, converter: Path) -> None:
    """Check that the converter lists the architecture. One that has no list is left to refuse it itself.

    Raises:
        ModelError: it does not know it.
    """
    config = AutoConfig.from_pretrained(origin.base, revision=origin.revision, trust_remote_code=False)
    asked = [sys.executable, str(converter), "--print-supported-models"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    known = set(KNOWN.findall(done.stdout + done.stderr))
    if known and not known & set(config.architectures):
        raise ModelError(
            "llama.cpp's converter does not know models of this architecture",
            where=str(origin.base),
            got=config.architectures[0],
            expected=f"a model of one of the families {', '.join(FAMILIES)}",
            do=MERGED,
        )


def _name_stop_token(inside: Path, renderer: Renderer) -> None:
    """Write the token that ends an answer as the end of a text, since a file has room for one. Bases have another."""
    token = renderer.tokenizer.convert_ids_to_tokens(renderer.stop_ids[0])
    for name, field, value in (
        ("config.json", "eos_token_id", renderer.stop_ids[0]),
        ("tokenizer_config.json", "eos_token", token),
    ):
        file = inside / name
        settings = json.loads(file.read_text(encoding="utf-8")) | {field: value}
        file.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _copy_sentencepiece(origin: TrainedModel, inside: Path) -> None:
    """Copy the base's SentencePiece file, without which the converter refuses some families, such as Gemma."""
    if (file := model_file(model_identity(origin.base, origin.revision), SENTENCEPIECE)) is not None:
        shutil.copyfile(file, inside / SENTENCEPIECE)


def _other_stops(renderer: Renderer) -> list[str]:
    others = renderer.tokenizer.convert_ids_to_tokens(list(renderer.stop_ids[1:]))
    if not others:
        return []
    return [
        f"A GGUF file names one stop token. In training, {', '.join(others)} also ended an answer. llama.cpp knows many"
        " such tokens by their names; if it does not stop at one, add it with `--reverse-prompt`."
    ]


@torch.no_grad()
def _compare(origin: TrainedModel, inside: Path, folder: Path, allowed: float) -> tuple[dict[str, float], list[str]]:
    """Compare the file, as read by transformers, with the merged model. Return the differences and notes on limits.

    Conversion does not round, so the float32 tolerance applies.
    """
    model = AutoModelForCausalLM.from_pretrained(inside, dtype=torch.float32, trust_remote_code=False)
    sequences = parity.greedy_answers(model, open_renderer(origin))
    ours = parity.logits_of(model, sequences)
    try:
        read = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=FILE, dtype=torch.float32, trust_remote_code=False
        )
    except (ImportError, ValueError, KeyError, OSError, RuntimeError, TypeError) as error:
        raise ModelError(
            "the converted file cannot be read back, so it cannot be checked",
            where=FILE,
            got=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}",
            expected=f"a file that transformers reads, which it tries for {', '.join(FAMILIES)}",
            do=MERGED,
        ) from error
    lost = lost_limits(model.config, read.config)
    try:
        found = parity.check_logits(ours, parity.logits_of(read, sequences), allowed, "the converted model")
    except ModelError as error:
        if not lost:
            raise
        raise ModelError(
            error.what, where=FILE, got=f"{'; '.join(lost)}; {error.got}", expected=error.expected, do=MERGED
        ) from error
    return found, [f"Longer texts than {longest(sequences)} tokens were not compared, and {limit}." for limit in lost]


def lost_limits(ours: Any, theirs: Any) -> list[str]:
    """Return the settings that change how far a model reads and that the file, as transformers reads it, lacks."""
    found = []
    for name in LIMITS:
        before, after = (getattr(config.get_text_config(), name, None) for config in (ours, theirs))
        if isinstance(before, dict):
            before, after = (rope.get("rope_type", "default") for rope in (before, after or {}))
        if before is not None and before != after:
            found.append(f"the file, as transformers reads it, has {name} {after} instead of {before}")
    return found


def longest(sequences: Sequence[TokenSequence]) -> int:
    """Return the number of tokens of the longest sequence."""
    return max(len(sequence.ids) for sequence in sequences)


def _converter() -> Path:
    """Return the path of the llama.cpp converter.

    Raises:
        ModelError: the converter or the package `gguf` is missing.
    """
    named = os.environ.get(LLAMA_CPP)
    place = str(Path(named) / CONVERTER) if named else shutil.which(CONVERTER)
    if place is None or not Path(place).is_file():
        raise ModelError(
            "the llama.cpp converter is not installed",
            where=LLAMA_CPP,
            got=named or "not set",
            expected=f"a checkout of llama.cpp with {CONVERTER}",
            do=f"Run `git clone https://github.com/ggml-org/llama.cpp` and `{INSTALL}`. Set LLAMA_CPP to the folder",
        )
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("the package `gguf` is required to read the file back", where="gguf", do=f"Run `{INSTALL}`")
    return Path(place)
