"""Public models as folders without their weights, which a plan does not read."""

from __future__ import annotations

from pathlib import Path

import torch
from public_models import public_config
from safetensors.torch import save_file
from tiny_tokenizer import tiny_tokenizer


def save_shape(name: str, folder: Path) -> Path:
    """Write the configuration of a public model with the tiny tokenizer, and return the folder."""
    config = public_config(name)
    config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    # A plan compares the configuration with the number of the weights and their width. These take no memory.
    weights = {f"layer.{number}": torch.zeros(0, config.hidden_size) for number in range(config.num_hidden_layers)}
    save_file(weights, folder / "model.safetensors")
    return folder
