"""A base that was saved with quantized weights is the same model as one that is quantized while it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine import CPU

from alignment_core.config import LoadIn
from alignment_core.models.base.base_checks import check_precision
from alignment_core.models.base.identity import model_identity
from alignment_core.models.base.loading import load_base


@pytest.mark.parametrize("load_in", ["nf4", "int8"])
def test_saved_weights_give_the_same_logits(tiny_model: Path, tmp_path: Path, load_in: LoadIn) -> None:
    while_loading = load_base(str(tiny_model), revision=None, load_in=load_in, device=CPU)
    while_loading.config.quantization_config.bnb_4bit_compute_dtype = torch.bfloat16  # as a GPU would have saved it
    while_loading.save_pretrained(tmp_path)
    check_precision(model_identity(str(tmp_path), None), load_in, "model.base")
    saved = load_base(str(tmp_path), revision=None, load_in=load_in, device=CPU)
    ids = torch.tensor([[5, 9, 11, 200]])
    assert torch.equal(saved(ids).logits, while_loading(ids).logits)
