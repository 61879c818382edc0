"""Target `gguf`: one file for llama.cpp and what is built on it, made by llama.cpp's own converter."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from alignment_core.errors import ModelError
from alignment_core.export import merged, parity
from alignment_core.export.origin import Origin
from alignment_core.export.speech import open_renderer

FILE = "model.gguf"
CONVERTER = "convert_hf_to_gguf.py"
LLAMA_CPP = "LLAMA_CPP"
"""Environment variable: folder of a checkout of llama.cpp."""
INSTALL = "pip install gguf sentencepiece"
TYPES = {"bfloat16": "bf16", "float16": "f16"}


def write(origin: Origin, folder: Path) -> dict[str, Any]:
    """Merge, convert, read the file back and compare its logits with the merged model's.

    Raises:
        ModelError: there is no converter, it does not take the model, or what it wrote is another model.
    """
    converter = _converter()
    inside = folder / "merged"
    inside.mkdir()
    found = merged.write(origin, inside)
    command = [sys.executable, str(converter), str(inside), "--outfile", str(folder / FILE)]
    done = subprocess.run([*command, "--outtype", TYPES[found["dtype"]]], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit {done.returncode}")
        raise ModelError("llama.cpp's converter does not take the model", where=str(converter), got=said)
    found["read_back"] = _compare(origin, inside, folder, found["before_rounding"]["tolerance"])
    shutil.rmtree(inside)
    return found


@torch.no_grad()
def _compare(origin: Origin, inside: Path, folder: Path, allowed: float) -> dict[str, float]:
    """The file, read by transformers' own reader: conversion rounds nothing, so float32's tolerance holds."""
    model = AutoModelForCausalLM.from_pretrained(inside, dtype=torch.float32)
    sequences = parity.greedy_answers(model, open_renderer(origin))
    ours = parity.logits_of(model, sequences)
    try:
        read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    except (ImportError, ValueError, KeyError, OSError) as error:
        raise ModelError(
            "the converted file cannot be read back, so nothing says that it is the model",
            where=FILE,
            got=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}",
        ) from error
    return parity.check_logits(ours, parity.logits_of(read, sequences), allowed, "the converted model")


def _converter() -> Path:
    """
    Raises:
        ModelError: there is none, or no package that reads its files.
    """
    named = os.environ.get(LLAMA_CPP)
    place = str(Path(named) / CONVERTER) if named else shutil.which(CONVERTER)
    if place is None or not Path(place).is_file():
        raise ModelError(
            "GGUF is written by llama.cpp's converter, which is not here",
            where=LLAMA_CPP,
            got=named or "not set",
            expected=f"a checkout of llama.cpp with {CONVERTER}",
            do=f"git clone https://github.com/ggml-org/llama.cpp, {INSTALL}, and set LLAMA_CPP to the folder",
        )
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("reading GGUF back needs a package", where="gguf", do=INSTALL)
    return Path(place)
