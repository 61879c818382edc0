"""Rows for tokens that have none: the same every time, unlike each other, and without an effect on the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import save_model
from engine import CPU

from alignment_core.models.base.loading import load_base


@pytest.mark.parametrize("name", ["llama", "llama tied", "gpt2", "phi"])  # Phi's head has a bias
@pytest.mark.parametrize("load_in", ["fp32", "nf4"])
def test_rows_are_added(tmp_path: Path, name: str, load_in: str) -> None:
    path = str(save_model(name, tmp_path))
    ids = torch.tensor([[5, 9, 11, 200]])
    before = load_base(path, revision=None, load_in=load_in, device=CPU)  # type: ignore[arg-type]
    one, other = (
        load_base(path, revision=None, load_in=load_in, device=CPU, rows=259)  # type: ignore[arg-type]
        for _ in range(2)
    )
    assert one.config.vocab_size == 259
    logits = one(ids).logits
    assert logits.shape == (1, 4, 259)
    assert torch.equal(logits, other(ids).logits)
    assert torch.allclose(logits[..., :256], before(ids).logits, atol=1e-5)
    new = one.get_output_embeddings().weight[256:]
    assert len(torch.unique(logits[0, -1, 256:])) == 3, "the head must tell new tokens apart"
    assert 0.3 < float(new.std() / one.get_output_embeddings().weight[:256].std()) < 3
    assert torch.isfinite(one(torch.tensor([[256, 258]])).logits).all()
    assert not any(parameter.requires_grad for parameter in one.parameters())
