"""Settings that fit a card: in which order they are tried, and what the search finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shapes import save_shape
from typer.testing import CliRunner

from alignment_core.config_file import load_config
from alignment_core.errors import ConfigError, TrainingError
from alignment_core.forecast.card import CONTEXT_GIB, card_size, free_memory
from alignment_core.forecast.fit import Fit, check_fit
from alignment_core.forecast.fit_process import _fit
from alignment_core.forecast.ladder import ladder
from alignment_flows.cli.app import app

MIB = 1 / 1024
"""In GiB."""


def search(config: Path, *changes: str, card: float = 8, models: tuple[str, ...] = ()) -> Fit:
    """Search in this process, which has loaded torch."""
    settings = load_config(config, changes).model_dump(mode="json")
    return Fit.model_validate(_fit({"settings": settings, "card": card, "models": list(models)}))


@pytest.mark.parametrize(("text", "size"), [("12gb", 12), ("12", 12), ("7.5 GiB", 7.5), ("24GB", 24)])
def test_card_size(text: str, size: float) -> None:
    assert card_size(text) == size
    assert free_memory(size) == (size - CONTEXT_GIB) * 2**30


@pytest.mark.parametrize("text", ["rtx 4090", "big", "0.5gb", "12 mb", ""])
def test_what_is_no_card(text: str) -> None:
    with pytest.raises(ConfigError, match="such as 12gb"):
        card_size(text)


def test_what_loses_least_is_tried_first(write: Callable[..., Path]) -> None:
    model = ["model.load_in=bf16", "model.max_length=1000", "model.lora.rank=8", "model.lora.alpha=12"]
    settings = load_config(write(token_budget=4096), model)
    assert [step.changes for step in ladder(settings, ["sft", "optimize", "evaluate"])] == [
        {"token_budget": "auto"},
        {"sft.adamw": "paged_8bit", "optimizer.adamw": "paged_8bit"},
        {"model.load_in": "nf4"},
        {"model.max_length": 500},
        {"model.lora.rank": 4, "model.lora.alpha": 6},
    ]


def test_nothing_has_to_change(write: Callable[..., Path]) -> None:
    found = search(write())
    assert found.device == "a card of 8 GB"
    assert found.changes == {}
    (attempt,) = found.attempts
    assert attempt.fits
    assert {"sft", "optimize", "evaluate"} <= attempt.stages.keys()
    assert all(stage.memory["process"] == 0 for stage in attempt.stages.values())
    expected = round(0.9 * (8 - CONTEXT_GIB) * 2**30)
    assert {stage.available for stage in attempt.stages.values()} == {expected}
    check_fit(found)


def test_time_is_given_before_anything_is_lost(write: Callable[..., Path]) -> None:
    """One pass of all tokens with kept activations needs 3.5 MiB in DPO, smaller passes need less."""
    found = search(write(memory_gb=3 * MIB, token_budget=4096, gradient_checkpointing=False))
    assert found.attempts[0].changes == {}
    assert not found.attempts[0].fits
    assert found.changes == {"token_budget": "auto", "gradient_checkpointing": "auto"}
    assert found.result.fits


def test_nothing_fits(write: Callable[..., Path], tiny_model: Path) -> None:
    found = search(write(memory_gb=0.01 * MIB), models=(str(tiny_model),))
    assert not found.result.fits
    bases = [attempt.changes.get("model.base") for attempt in found.attempts]
    assert bases.count(str(tiny_model)) == 1
    with pytest.raises(TrainingError, match=r"nothing that was tried fits.*at most about 0\.0 billion") as raised:
        check_fit(found)
    assert raised.value.exit_code == 2


@pytest.mark.slow
def test_a_smaller_model_is_chosen(write: Callable[..., Path], tmp_path: Path) -> None:
    """8 billion weights of 4 bits take more than 4 GB. Half a billion take less."""
    folders = {name: save_shape(name, tmp_path / name) for name in ("Llama-3.1-8B", "Qwen2.5-0.5B")}
    large, small_ones = f"model.base={folders['Llama-3.1-8B']}", (str(folders["Qwen2.5-0.5B"]),)
    found = search(write(), large, "model.load_in=bf16", card=4, models=small_ones)
    small = {"model.base": str(folders["Qwen2.5-0.5B"]), "model.revision": None}
    assert found.changes.items() >= small.items()
    assert found.result.fits
    assert found.result.model == str(folders["Qwen2.5-0.5B"])


@pytest.mark.slow
def test_command(write: Callable[..., Path]) -> None:
    config = write(memory_gb=3 * MIB, token_budget=4096, gradient_checkpointing=False)
    shown = CliRunner().invoke(app, ["fit", str(config), "--card", "8gb"], env={"COLUMNS": "120"})
    assert shown.exit_code == 0
    assert "--set token_budget=auto --set gradient_checkpointing=auto" in shown.output
    facts: dict[str, Any] = json.loads(CliRunner().invoke(app, ["fit", str(config), "--card", "8gb", "--json"]).stdout)
    assert facts["fits"]
    assert facts["changes"] == {"token_budget": "auto", "gradient_checkpointing": "auto"}
    assert facts["attempts"][0]["fits"] is False
    planned = CliRunner().invoke(app, ["plan", str(config), "--card", "8gb"])
    assert planned.exit_code == 2
    assert "does not fit into the memory of a card of 8 GB" in planned.output
