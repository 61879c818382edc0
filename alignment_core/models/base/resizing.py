"""Add rows to a model's embedding and output head for tokens of the tokenizer that have none."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel


def add_rows(model: PreTrainedModel, rows: int) -> None:
    """Extend the embedding and the output head to `rows` rows, in the same way every time.

    The new rows are drawn from the normal distribution of the present ones, each feature with its own mean and spread:
    a head cannot tell equal rows apart, and adapters do not train them.
    """
    present: int = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(rows, mean_resizing=False)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    weights = [embedding]
    if head is not None and head.weight is not embedding:
        weights.append(head.weight)
    with torch.no_grad():
        for seed, weight in enumerate(weights):
            _fill(weight, present, seed)
        bias: Tensor | None = getattr(head, "bias", None)
        if bias is not None:
            bias[present:] = bias[:present].mean()


def _fill(weight: Tensor, present: int, seed: int) -> None:
    known = weight[:present].float()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((weight.shape[0] - present, weight.shape[1]), generator=generator)
    weight[present:] = (known.mean(0) + known.std(0) * noise.to(weight.device)).to(weight.dtype)
