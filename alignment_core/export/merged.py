"""Target `merged`: the adapter's update added to the full-precision base, as one 16-bit model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from alignment_core.errors import ModelError
from alignment_core.export import parity
from alignment_core.export.origin import Origin
from alignment_core.export.speech import open_renderer, write_speech
from alignment_core.models.adapters import ADAPTER
from alignment_core.models.load import load_base
from alignment_core.training.memory import available_memory

CPU = torch.device("cpu")
ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Half the distance between 1 and the next number."""
BESIDE_WEIGHTS = 1.2
"""Memory that an export takes in all, as a multiple of the weights in float32."""


@torch.no_grad()
def write(origin: Origin, folder: Path) -> dict[str, Any]:
    """Merge, save, read back and compare; returns what was measured.

    Raises:
        ModelError: the base is quantised itself or does not fit into memory, or what would be exported is not the
            model that was trained.
    """
    dtype = _dtype(origin)
    renderer = open_renderer(origin)
    model = with_adapter(origin, load_base(origin.base, revision=origin.revision, load_in="fp32", device=CPU))
    sequences = parity.greedy_answers(model, renderer)
    trained = parity.logits_of(model, sequences)

    merged = merge(model)
    unrounded = parity.logits_of(merged, sequences)
    # A dot product of n terms in float32 is off by the roundings of its terms, which add up as √n.
    single = parity.SINGLE * merged.config.get_text_config().hidden_size ** 0.5
    written = _save(merged.to(dtype), folder)
    del model, merged
    write_speech(origin, renderer, folder)

    exported = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    _check_weights(written, exported)
    there = parity.logits_of(exported.float(), sequences)
    per_roundoff = parity.noise(exported, sequences, there, ROUNDOFF[dtype]) / ROUNDOFF[dtype]
    del exported
    before = parity.check_logits(trained, unrounded, parity.ROOM * single * per_roundoff, "the merged model")
    after = parity.check_logits(trained, there, parity.ROOM * ROUNDOFF[dtype] * per_roundoff, "the exported model")
    parity.check_answers(sequences, trained, unrounded, before["largest_difference"])
    found: dict[str, Any] = {
        "dtype": str(dtype).removeprefix("torch."),
        "before_rounding": before,
        "after_rounding": after,
        "prompts": len(sequences),
        "same_greedy_answers": parity.check_answers(sequences, trained, there, after["largest_difference"]),
    }
    if (load_in := origin.manifest.config["load_in"]) in ("nf4", "int8"):
        quantised = load_base(origin.base, revision=origin.revision, load_in=load_in, device=CPU)
        on_quantised = parity.logits_of(with_adapter(origin, quantised), sequences)
        found[f"on_{load_in}_base"] = parity.distance(trained, on_quantised)
    return found


def merge(model: PeftModel) -> Any:
    """The base with the adapter's update in its weights, as peft computes it for every kind of adapter and layer."""
    return model.merge_and_unload(safe_merge=True)


def with_adapter(origin: Origin, base: Any) -> PeftModel:
    """The adapter on a base.

    Raises:
        ModelError: weights of the adapter are missing or unknown.
    """
    model = PeftModel.from_pretrained(base, origin.folder)
    # peft only warns of weights that it does not find or does not know.
    differing = get_peft_model_state_dict(model).keys() ^ load_file(origin.folder / ADAPTER).keys()
    if differing:
        raise ModelError(
            "the adapter does not fit the base model",
            where=str(origin.folder),
            got=f"{len(differing)} weights that are missing or unknown, such as {min(differing)}",
        )
    return model.eval()


def _dtype(origin: Origin) -> torch.dtype:
    """The base's own 16-bit type; bfloat16 for one that is kept in float32.

    Raises:
        ModelError: the base is quantised itself, or there is not enough memory for it.
    """
    config = AutoConfig.from_pretrained(origin.base, revision=origin.revision)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            "the base model is quantised itself: there are no full-precision weights to merge into",
            where=f"model.base {origin.base}",
            do="Export the adapter instead",
        )
    with torch.device("meta"):
        weights = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    needed, free = int(4 * weights * BESIDE_WEIGHTS), available_memory(CPU)
    if needed > free:
        raise ModelError(
            "merging needs the base in float32 in this machine's memory, and it does not fit",
            where=f"model.base {origin.base}",
            got=f"{free / 2**30:.1f} GiB free",
            expected=f"{needed / 2**30:.1f} GiB",
            do="Export on a machine with more memory, or export the adapter instead",
        )
    return config.dtype if config.dtype in ROUNDOFF else torch.bfloat16


def _save(model: Any, folder: Path) -> dict[str, str]:
    """Write weights and configuration; returns a digest of each weight.

    Raises:
        ModelError: a weight is too large for the 16-bit type.
    """
    digests = {}
    for name, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise ModelError("a weight is too large for the base's 16-bit type", where=name, got=weight.dtype)
        digests[name] = _digest(weight)
    model.save_pretrained(folder)
    return digests


def _check_weights(written: dict[str, str], model: Any) -> None:
    there = {name: _digest(weight) for name, weight in model.state_dict().items()}
    differing = {name for name in written.keys() | there.keys() if written.get(name) != there.get(name)}
    if differing:
        raise ModelError(
            "the exported files do not hold the merged weights",
            where="parity check",
            got=f"{len(differing)} that differ, such as {min(differing)}",
        )


def _digest(weight: Tensor) -> str:
    return hashlib.sha256(weight.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
