"""Target `merged`: the adapter merged into the full-precision base model, saved as one 16-bit model."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from alignment_core.errors import ModelError
from alignment_core.export import parity
from alignment_core.export.tokenizer_files import open_renderer, write_tokenizer_files, written_code
from alignment_core.inference.trained_model import TrainedModel
from alignment_core.models.base.layers import short_names
from alignment_core.models.base.loading import bare_model, load_base, read_config, weight_types
from alignment_core.models.roles.adapters import ADAPTER
from alignment_core.own_code import may_run
from alignment_core.training.memory import available_memory

CPU = torch.device("cpu")
ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Unit roundoff: half the distance between 1 and the next larger number."""
UNMERGED = "Export the adapter instead"
BESIDE_WEIGHTS = 1.2
"""Total memory of an export, as a multiple of the float32 weights."""


@torch.no_grad()
def write(origin: TrainedModel, folder: Path) -> dict[str, Any]:
    """Merge, save, read back and compare. Return the measurements of the parity check.

    Raises:
        ModelError: the base model is quantized or does not fit into memory, or the exported model is not the trained
            one.
    """
    dtype = _dtype(origin)
    renderer = open_renderer(origin)
    rows = origin.manifest.config.get("embedding_rows")
    own_code = origin.own_code
    base = load_base(origin.base, revision=origin.revision, load_in="fp32", device=CPU, rows=rows, own_code=own_code)
    model = with_adapter(origin, base)
    sequences = parity.greedy_answers(model, renderer)
    with _idle_layers(model) as idle:
        trained = parity.logits_of(model, sequences)

    merged = merge(model)
    unrounded = parity.logits_of(merged, sequences)
    # The rounding errors of a float32 dot product of n terms add up as √n.
    single = parity.SINGLE * merged.config.get_text_config().hidden_size ** 0.5
    _round(merged, weight_types(origin.base, revision=origin.revision, dtype=dtype, own_code=own_code))
    written = _save(merged, folder)
    del base, model, merged
    write_tokenizer_files(origin, renderer, folder)

    exported = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype="auto",
        use_safetensors=True,
        trust_remote_code=may_run(str(folder), None, written_code(origin, folder)),
    )
    _check_weights(written, exported)
    there = parity.logits_of(exported.float(), sequences)
    per_roundoff = parity.rounding_noise(exported, sequences, there, ROUNDOFF[dtype]) / ROUNDOFF[dtype]
    del exported
    try:
        before = parity.check_logits(trained, unrounded, parity.ROOM * single * per_roundoff, "the merged model")
    except ModelError as error:
        raise (_read_past(idle) if idle else error) from error
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
        quantized = load_base(
            origin.base, revision=origin.revision, load_in=load_in, device=CPU, rows=rows, own_code=own_code
        )
        on_quantized = parity.logits_of(with_adapter(origin, quantized), sequences)
        found[f"on_{load_in}_base"] = parity.distance(trained, on_quantized)
    return found


def merge(model: PeftModel) -> Any:
    """Merge the adapter into the base weights with PEFT, which supports every kind of adapter and layer.

    Raises:
        ModelError: PEFT refuses, for example because a merged weight is not a finite number.
    """
    try:
        return model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as error:
        raise ModelError(
            "peft cannot merge the adapter into the base model", where="merge", got=str(error), do=UNMERGED
        ) from error


@contextmanager
def _idle_layers(model: PeftModel) -> Iterator[list[str]]:
    """Yield a list that holds, at the end of the block, the layers with an adapter that were not called in it."""
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper)
    }
    idle: list[str] = []
    called: set[int] = set()
    hooks = [layer.register_forward_hook(lambda one, *_: called.add(id(one))) for layer in layers.values()]
    try:
        yield idle
    finally:
        for hook in hooks:
            hook.remove()
    idle += [name for name, layer in layers.items() if id(layer) not in called]


def _read_past(idle: list[str]) -> ModelError:
    return ModelError(
        "the base model does not call some layers, but reads their weights itself: an adapter on them has no effect"
        " until it is merged",
        where="parity check",
        got=short_names(idle),
        do=UNMERGED,
    )


def _round(model: Any, types: Mapping[str, torch.dtype]) -> None:
    """Round the weights in place to the types in which transformers reads them."""
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        weight.data = weight.data.to(types.get(name, weight.dtype))


def with_adapter(origin: TrainedModel, base: Any) -> PeftModel:
    """Load the adapter onto a base model.

    Raises:
        ModelError: adapter weights are missing or unexpected.
    """
    with warnings.catch_warnings():
        # peft looks for the pattern of experts only among modules, and then uses it all the same.
        warnings.filterwarnings("ignore", ".*(rank|alpha)_pattern keys did not match", RuntimeWarning)
        model = PeftModel.from_pretrained(base, origin.folder)
    # PEFT only warns about missing or unexpected weights.
    differing = (
        get_peft_model_state_dict(model, save_embedding_layers=False).keys() ^ load_file(origin.folder / ADAPTER).keys()
    )
    if differing:
        raise ModelError(
            "the adapter does not fit the base model",
            where=str(origin.folder),
            got=f"missing or unexpected weights: {len(differing)}, such as {min(differing)}",
        )
    return model.eval()


def _dtype(origin: TrainedModel) -> torch.dtype:
    """Return the base model's 16-bit data type, or bfloat16 if its weights are stored in float32.

    Raises:
        ModelError: the base model is quantized, or there is not enough memory for it.
    """
    config = read_config(origin.base, origin.revision, origin.own_code)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            "the base model is quantized: there are no full-precision weights to merge into",
            where=f"model.base {origin.base}",
            do=UNMERGED,
        )
    with torch.device("meta"):
        bare = bare_model(AutoModelForCausalLM, config, origin.own_code)
        weights = sum(weight.numel() for weight in bare.parameters())
    needed, free = int(4 * weights * BESIDE_WEIGHTS), available_memory(CPU)
    if needed > free:
        raise ModelError(
            "merging needs the base model in float32 in RAM, but it does not fit",
            where=f"model.base {origin.base}",
            got=f"{free / 2**30:.1f} GiB free",
            expected=f"at least {needed / 2**30:.1f} GiB",
            do="Export on a machine with more RAM, or export the adapter instead",
        )
    return config.dtype if config.dtype in ROUNDOFF else torch.bfloat16


def _save(model: Any, folder: Path) -> dict[str, str]:
    """Write weights and configuration. Return a digest of each weight.

    Raises:
        ModelError: a weight is too large for the 16-bit type.
    """
    digests = {}
    for name, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise ModelError("a weight is too large for the base model's 16-bit type", where=name, got=weight.dtype)
        digests[name] = _digest(weight)
    model.save_pretrained(folder)
    return digests


def _check_weights(written: dict[str, str], model: Any) -> None:
    there = {name: _digest(weight) for name, weight in model.state_dict().items()}
    differing = {name for name in written.keys() | there.keys() if written.get(name) != there.get(name)}
    if differing:
        raise ModelError(
            "the exported files do not contain the merged weights",
            where="parity check",
            got=f"differing weights: {len(differing)}, such as {min(differing)}",
        )


def _digest(weight: Tensor) -> str:
    return hashlib.sha256(weight.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
