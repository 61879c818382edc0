"""A small real run: pairs that prefer a short answer, and the tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def write(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """Writes the settings of the run, with changes, and its data `pairs.jsonl` beside them."""
    rows = [
        {
            "prompt": f"What is {n} plus {n}?",
            "chosen": f"It is {2 * n}.",
            "rejected": f"I do not know about {n}, sorry!",
        }
        for n in range(24)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def to_file(**changes: Any) -> Path:
        step = {"batch_size": 8, "learning_rate": 1e-3}
        config = {
            "name": "small",
            "model": {"base": str(tiny_model), "load_in": "fp32", "max_length": 128, "lora": {"rank": 2}},
            "data": {"sources": [{"path": str(tmp_path / "pairs.jsonl")}], "held_out_fraction": 0.25},
            "sft": step,
            "optimizer": {"name": "dpo", **step},
            "evaluation": {"max_prompts": 2, "max_new_tokens": 8},
            "store": str(tmp_path / "store"),
            "device": "cpu",
            **changes,
        }
        path = tmp_path / "run.yaml"
        path.write_text(json.dumps(config))
        return path

    return to_file
