"""Find the linear layers of a model, or keep only its first layers."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def linear_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the layers that are quantized: all linear ones except the head (vocabulary or classifier score)."""
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D)]
    return [m for m in linear if m is not head and m is not getattr(model, "score", None)]


def keep_layers(model: PreTrainedModel, present: int, kept: int) -> None:
    """Keep only the first `kept` of the model's `present` layers."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == present:
                setattr(module, name, child[:kept])
