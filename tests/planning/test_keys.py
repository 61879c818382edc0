"""The key of the `reference` stage changes with everything that changes its log-probabilities."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment_core.config import PipelineConfig
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.registry import load_registry

KeyOf = Callable[[dict[str, Any]], str]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny model that tests may change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def key_of(model: Path, tmp_path: Path) -> KeyOf:
    """Return a function that computes the key of the `reference` stage for changed settings, given by dotted names."""
    row = {"prompt": "What is 1 plus 1?", "chosen": "It is 2.", "rejected": "No."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")

    def make(changes: dict[str, Any]) -> str:
        config: dict[str, Any] = {
            "model": {"base": str(model), "load_in": "fp32", "max_length": 128, "lora": {"rank": 2}},
            "data": {"sources": [{"path": str(tmp_path / "pairs.jsonl")}]},
            "sft": {"batch_size": 8},
            "optimizer": {"name": "dpo"},
        }
        for name, value in changes.items():
            *groups, field = name.split(".")
            place = config
            for group in groups:
                place = place.setdefault(group, {})
            place[field] = value
        reference = plan_pipeline(PipelineConfig.model_validate(config), load_registry()).reference
        assert reference is not None
        return reference.key

    return make


@pytest.mark.parametrize(
    "change",
    [
        {"model.max_length": 64},
        {"model.chat_template": "chatml"},
        {"model.load_in": "nf4"},
        {"model.lora.rank": 4},
        {"sft": None},
        {"sft.learning_rate": 3e-4},
        {"sft.epochs": 2},
        {"sft.adamw": "paged_8bit"},
        {"seed": 1},
        {"optimizer.name": "kto"},
        {"data.held_out_fraction": 0.5},
    ],
    ids=lambda change: " ".join(change),
)
def test_settings_that_change_log_probabilities_change_the_key(key_of: KeyOf, change: dict[str, Any]) -> None:
    assert key_of(change) != key_of({})


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer.beta": 0.3},
        {"optimizer.learning_rate": 1e-5},
        {"token_budget": 256},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": 2},
        {"evaluation.max_prompts": 3},
        {"reward.epochs": 3},
        {"device": "cpu"},
        {"name": "other"},
    ],
    ids=lambda change: " ".join(change),
)
def test_settings_that_do_not_affect_the_reference_keep_the_key(key_of: KeyOf, change: dict[str, Any]) -> None:
    assert key_of(change) == key_of({})


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"])
def test_changed_base_model_changes_the_key(key_of: KeyOf, model: Path, file: str) -> None:
    before = key_of({})
    with (model / file).open("ab") as handle:
        handle.write(b" ")
    assert key_of({}) != before


def test_changed_data_changes_the_key(key_of: KeyOf, tmp_path: Path) -> None:
    before = key_of({})
    (tmp_path / "pairs.jsonl").write_text((tmp_path / "pairs.jsonl").read_text().replace("It is 2.", "It is two."))
    assert key_of({}) != before
