"""Fixtures for the export: a stored adapter with changed weights, and models of other architectures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from architectures import save_model
from exported import Make, put_adapter

from alignment_core.inference.trained_model import TrainedModel


@pytest.fixture
def trained(tmp_path: Path, tiny_model: Path) -> Make:
    """Return a function that puts an adapter into the store `tmp_path / "store"`."""

    def make(base: Path = tiny_model, **settings: Any) -> TrainedModel:
        return put_adapter(tmp_path / "store", base, **settings)

    return make


@pytest.fixture
def architecture(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """Return a function that saves a random model of an architecture with the tiny model's tokenizer."""

    def save(name: str, **changes: Any) -> Path:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        folder = save_model(name, tmp_path / name.replace(" ", "-"), vocab_size=len(tokenizer), **changes)
        tokenizer.save_pretrained(folder)
        return folder

    return save
