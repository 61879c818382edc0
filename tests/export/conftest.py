"""Artifacts as a stage leaves them: an adapter that was trained a little, in a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from architectures import save_model
from exported import Make, put_adapter

from alignment_core.export.origin import Origin


@pytest.fixture
def trained(tmp_path: Path, tiny_model: Path) -> Make:
    """Puts a trained adapter into the store `tmp_path / "store"`."""

    def make(base: Path = tiny_model, **settings: Any) -> Origin:
        return put_adapter(tmp_path / "store", base, **settings)

    return make


@pytest.fixture
def architecture(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """Saves a random model of an architecture with the tiny model's tokenizer."""

    def save(name: str, **changes: Any) -> Path:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        folder = save_model(name, tmp_path / name.replace(" ", "-"), vocab_size=len(tokenizer), **changes)
        tokenizer.save_pretrained(folder)
        return folder

    return save
