"""Public models as folders without their weights, which a plan does not read."""

from __future__ import annotations

from pathlib import Path

import torch
from public_models import public_config
from safetensors.torch import save_file
from tiny_tokenizer import tiny_tokenizer


def save_shape(name: str, folder: Path) -> Path:
    """Write the configuration of a public model with the tiny tokenizer, and return the folder."""
    public_config(name).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    return folder
