"""What the export of one architecture gives: the columns of exports in the architecture matrix."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from unittest.mock import patch

import torch
from engine import naive_token_logps
from every_architecture import save_small
from exported import put_adapter
from matrix import EQUAL, TOLERANCE, examples
from peft import AutoPeftModelForCausalLM
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from alignment_core.errors import AlignmentError
from alignment_core.export.targets import merged, ollama, vllm
from alignment_core.export.tokenizer_files import open_renderer
from alignment_core.inference.trained_model import TrainedModel


@dataclass(frozen=True)
class Exports:
    """`EQUAL` or a reason for each target.

    Attributes:
        merged: passes the parity check in 16 bits, and unrounded it equals plain peft's base with the adapter.
        vllm: the adapter has only settings that vLLM reads, and all stop tokens are beside it.
        ollama: Ollama reads the model, and the Modelfile has all stop tokens.
    """

    merged: str
    vllm: str
    ollama: str

    def differences(self) -> dict[str, str]:
        """Return the targets that differ without a reason."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: text for name, text in found.items() if text.startswith("DIFFERS")}


def examine_exports(name: str, folder: Path, tokenizer: Path) -> Exports:
    """Export a small random model of an architecture or variant with a changed adapter.

    Args:
        name: the architecture or variant.
        folder: an empty folder.
        tokenizer: folder of the tokenizer, with `<pad>` = 0, `<s>` = 1 and `</s>` = 2.
    """
    words = AutoTokenizer.from_pretrained(tokenizer)
    words.save_pretrained(save_small(name, folder / "base", len(words)))
    origin = put_adapter(folder / "store", folder / "base")
    for target in ("rounded", "unrounded", "vllm", "ollama"):
        (folder / target).mkdir()
    return Exports(
        merged=_named(lambda: _merged(origin, folder)),
        vllm=_named(lambda: _vllm(origin, folder / "vllm")),
        ollama=_named(lambda: _ollama(origin, folder / "ollama")),
    )


def _named(export: Callable[[], str]) -> str:
    try:
        return export()
    except AlignmentError as error:
        return f"refused: {error.what}"


def _merged(origin: TrainedModel, folder: Path) -> str:
    merged.write(origin, folder / "rounded")
    single = torch.float32
    with patch.object(merged, "_dtype", lambda _: single), patch.dict(merged.ROUNDOFF, {single: 2.0**-24}):
        merged.write(origin, folder / "unrounded")
    plain = AutoPeftModelForCausalLM.from_pretrained(str(origin.folder)).eval()
    expected = _logps(plain)
    found = _logps(AutoModelForCausalLM.from_pretrained(folder / "unrounded").eval())
    with plain.disable_adapter():
        moved = float((_logps(plain) - expected).norm() / expected.norm())
    error = float((found - expected).norm() / expected.norm())
    return EQUAL if error < TOLERANCE < moved else f"DIFFERS by {error:.1e}, where the adapter moves {moved:.1e}"


@torch.no_grad()
def _logps(model: object) -> Tensor:
    return torch.cat([naive_token_logps(model, sequence) for sequence in examples()])


def _vllm(origin: TrainedModel, folder: Path) -> str:
    vllm.write(origin, folder, folder)
    stops = set(open_renderer(origin).stop_ids)
    there = set(GenerationConfig.from_pretrained(folder).eos_token_id)
    return EQUAL if there == stops else f"DIFFERS in the stop tokens {stops ^ there}"


def _ollama(origin: TrainedModel, folder: Path) -> str:
    ollama.write(origin, folder)
    renderer, modelfile = open_renderer(origin), (folder / ollama.MODELFILE).read_text()
    stops = [json.dumps(renderer.tokenizer.convert_ids_to_tokens(one)) for one in renderer.stop_ids]
    missing = [stop for stop in stops if f"PARAMETER stop {stop}\n" not in modelfile]
    return f"DIFFERS: {missing} do not stop" if missing else EQUAL
