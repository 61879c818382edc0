"""A small real run: pairs that prefer a short answer, and the tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from brake import Brake
from served import Served, align_up


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


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """What `align up` starts, for every test that needs it; `align down` ends it."""
    with align_up(tmp_path_factory.mktemp("workers"), tmp_path_factory.mktemp("prefect-home")) as here:
        yield here


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for a module's runs: what one has built, the others find."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def brake(tmp_path: Path) -> Brake:
    """Holds stages of a worker's run in the middle of their work."""
    folder = tmp_path / "brake"
    folder.mkdir()
    return Brake(folder)
