"""A base model with random weights, made on its device one matrix at a time, as `load_base` would load it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers.auto import AutoHfQuantizer

from alignment_core.config import LoadIn
from alignment_core.models.base.layers import linear_layers
from alignment_core.models.base.loading import base_dtype, keep_linear4bit_differentiable, quantization

Draw = Callable[[str, Tensor], Tensor]


def make_base(
    shape: Mapping[str, Any], name: str, load_in: LoadIn, device: torch.device, *, drawn_on: str | None = None
) -> PreTrainedModel:
    """Return a frozen model with random weights.

    At most one matrix exists unquantized at a time, so a model of 8 billion weights never needs 16 GB.

    Args:
        shape: arguments of `AutoConfig.for_model`.
        name: its name, in place of a folder.
        load_in: nf4, bf16 or fp32.
        device: where it is made.
        drawn_on: the device whose generator draws the numbers; that of the model if None. Generators of different
            devices give different numbers, so models to be compared are both drawn on the CPU.
    """
    dtype = base_dtype(load_in, device)
    config = AutoConfig.for_model(**shape, name_or_path=name)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    settings = quantization(load_in, dtype)
    if settings is not None:
        _replace_linear_layers(model, settings)
    _fill(model, _normal(config.initializer_range, drawn_on or device.type, device))
    _compute_rotations(model, device)
    keep_linear4bit_differentiable(model)
    return model.requires_grad_(False).eval()


def _normal(deviation: float, drawn_on: str, device: torch.device) -> Draw:
    generator = torch.Generator(device=drawn_on).manual_seed(0)

    def draw(name: str, like: Tensor) -> Tensor:
        if like.dim() == 1 and name == "weight":  # a norm
            return torch.ones(like.shape, dtype=like.dtype, device=device)
        drawn = torch.randn(like.shape, generator=generator, device=generator.device)
        return (deviation * drawn).to(device=device, dtype=like.dtype)

    return draw


def _replace_linear_layers(model: PreTrainedModel, settings: BitsAndBytesConfig) -> None:
    """Replace every linear layer except the head by a 4-bit one, and mark the model as transformers would."""
    names = {id(module): name for name, module in model.named_modules()}
    for layer in linear_layers(model):
        assert isinstance(layer, nn.Linear)
        with torch.device("meta"):
            quantised = Linear4bit(
                layer.in_features,
                layer.out_features,
                layer.bias is not None,
                settings.bnb_4bit_compute_dtype,
                compress_statistics=settings.bnb_4bit_use_double_quant,
                quant_type=settings.bnb_4bit_quant_type,
            ).to(model.dtype)
        model.set_submodule(names[id(layer)], quantised)
    quantizer = AutoHfQuantizer.from_config(settings)
    model.config.quantization_config = settings
    model.is_loaded_in_4bit, model.is_quantized = True, True
    model.hf_quantizer, model.quantization_method = quantizer, settings.quant_method


def _fill(model: PreTrainedModel, draw: Draw) -> None:
    made: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is None:
                continue
            if id(weight) not in made:
                full = draw(name, weight)
                made[id(weight)] = _stored(module, full) if isinstance(weight, Params4bit) else _frozen(full)
            module._parameters[name] = made[id(weight)]


def _frozen(full: Tensor) -> nn.Parameter:
    return nn.Parameter(full, requires_grad=False)


def _stored(layer: nn.Module, full: Tensor) -> nn.Parameter:
    """Return the matrix in 4 bits."""
    like: Any = layer.weight
    weight: Any = Params4bit(
        full.bfloat16().to(full.dtype),  # otherwise a bf16 and a float32 model would have different 4-bit weights
        requires_grad=False,
        compress_statistics=like.compress_statistics,
        quant_type=like.quant_type,
        quant_storage=like.quant_storage,
        module=layer,
    )
    stored: nn.Parameter = weight.to(full.device)
    return stored


def _compute_rotations(model: PreTrainedModel, device: torch.device) -> None:
    """Make the modules with buffers again: on the meta device, their frequencies have no content."""
    for name, module in list(model.named_modules()):
        if any(buffer is not None and buffer.is_meta for buffer in module._buffers.values()):
            kind: Any = type(module)
            model.set_submodule(name, kind(config=model.config).to(device))
