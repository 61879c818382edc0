"""Find the linear layers and the other weight matrices of a model, or keep only its first layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

NAMED = 4
"""Most kinds of weights that a sentence names."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight of two or more dimensions inside the layers: no embedding, and not the head.

    Attributes:
        name: its name in the model without adapters.
        parameter: the weight as it is stored. Quantized, it has another shape.
        elements: how many numbers it stands for.
        linear: whether it is the weight of a linear layer.
    """

    name: str
    parameter: nn.Parameter
    elements: int
    linear: bool


def linear_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the layers that are quantized: all linear ones except the head (vocabulary or classifier score).

    transformers does not quantize kinds of linear layers that an architecture defines, such as routers.
    """
    head = model.get_output_embeddings()
    kinds = (nn.Linear, Conv1D, Linear4bit, Linear8bitLt)
    linear: list[nn.Module] = [m for m in model.modules() if type(m) in kinds]
    return [m for m in linear if m is not head and m is not getattr(model, "score", None)]


def inner_matrices(model: PreTrainedModel) -> Iterator[Matrix]:
    """Yield the matrices inside the layers, also those that an adapter or a quantized layer wraps."""
    linear = {id(m.weight): m for m in linear_layers(model)}
    outer = {id(p) for m in (model.get_output_embeddings(), getattr(model, "score", None)) if m for p in m.parameters()}
    outer |= {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    for name, parameter in model.named_parameters():
        layer = linear.get(id(parameter))
        if id(parameter) in outer or ".lora_" in name or (layer is None and parameter.dim() < 2):
            continue
        size = layer.in_features * layer.out_features if isinstance(layer, nn.Linear) else parameter.numel()
        yield Matrix(name.replace(".base_layer", ""), parameter, size, layer is not None)


def short_names(names: Iterable[str]) -> str:
    """Return the kinds of weights among these names, such as `experts.down_proj`, without the numbers of the layers."""
    kinds = {".".join([part for part in name.split(".") if not part.isdigit()][-2:]) for name in names}
    shown = sorted(kinds)[:NAMED]
    return ", ".join(shown) + (f" and {len(kinds) - NAMED} more kinds" if len(kinds) > NAMED else "")


def unquantised(model: PreTrainedModel) -> str | None:
    """Return a sentence about the matrices inside the layers that quantization leaves as they are; None if none."""
    left = [matrix for matrix in inner_matrices(model) if not matrix.linear]
    size = sum(matrix.parameter.nbytes for matrix in left)
    if not left:
        return None
    return (
        f"only linear layers are quantized: {short_names(matrix.name for matrix in left)} "
        f"stay in {str(left[0].parameter.dtype).removeprefix('torch.')} and take {size / 2**20:.1f} MiB"
    )


def keep_layers(model: PreTrainedModel, present: int, kept: int) -> None:
    """Keep only the first `kept` of the model's `present` layers."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == present:
                setattr(module, name, child[:kept])
