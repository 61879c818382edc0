"""Target `gguf`: one file for llama.cpp and programs built on it, written by llama.cpp's converter."""

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
from alignment_core.export import parity
from alignment_core.export.targets import merged
from alignment_core.export.tokenizer_files import open_renderer
from alignment_core.inference.trained_model import TrainedModel

FILE = "model.gguf"
CONVERTER = "convert_hf_to_gguf.py"
LLAMA_CPP = "LLAMA_CPP"
"""Environment variable with the folder of a llama.cpp checkout."""
INSTALL = "pip install gguf sentencepiece"
TYPES = {"bfloat16": "bf16", "float16": "f16"}


def write(origin: TrainedModel, folder: Path) -> dict[str, Any]:
    """Merge, convert, read the file back and compare its logits with the merged model's.

    Raises:
        ModelError: the converter is missing, it cannot convert the model, or the converted model differs.
    """
    converter = _converter()
    inside = folder / "merged"
    inside.mkdir()
    found = merged.write(origin, inside)
    command = [sys.executable, str(converter), str(inside), "--outfile", str(folder / FILE)]
    done = subprocess.run([*command, "--outtype", TYPES[found["dtype"]]], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit {done.returncode}")
        raise ModelError("llama.cpp cannot convert the model", where=str(converter), got=reason)
    found["read_back"] = _compare(origin, inside, folder, found["before_rounding"]["tolerance"])
    shutil.rmtree(inside)
    return found


@torch.no_grad()
def _compare(origin: TrainedModel, inside: Path, folder: Path, allowed: float) -> dict[str, float]:
    """Compare the file, as read by transformers, with the merged model.

    Conversion does not round, so the float32 tolerance applies.
    """
    model = AutoModelForCausalLM.from_pretrained(inside, dtype=torch.float32, trust_remote_code=False)
    sequences = parity.greedy_answers(model, open_renderer(origin))
    ours = parity.logits_of(model, sequences)
    try:
        read = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=FILE, dtype=torch.float32, trust_remote_code=False
        )
    except (ImportError, ValueError, KeyError, OSError) as error:
        raise ModelError(
            "the converted file cannot be read back, so it cannot be checked",
            where=FILE,
            got=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}",
        ) from error
    return parity.check_logits(ours, parity.logits_of(read, sequences), allowed, "the converted model")


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
