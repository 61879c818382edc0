"""A small real run: pairs that prefer a short response, and a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def small_run(folder: Path, model: Path, **changes: Any) -> Path:
    """Write the data and the config file into the folder. Return the path of the config file."""
    rows = [
        {
            "prompt": f"What is {n} plus {n}?",
            "chosen": f"It is {2 * n}.",
            "rejected": f"I do not know about {n}, sorry!",
        }
        for n in range(24)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = {"batch_size": 8, "learning_rate": 1e-3}
    config = {
        "name": "small",
        "model": {"base": str(model), "load_in": "fp32", "max_length": 128, "lora": {"rank": 2}},
        "data": {"sources": [{"path": str(folder / "pairs.jsonl")}], "held_out_fraction": 0.25},
        "sft": step,
        "optimizer": {"name": "dpo", **step},
        "evaluation": {"max_prompts": 2, "max_new_tokens": 8},
        "store": str(folder / "store"),
        "device": "cpu",
        **changes,
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(config))
    return path
