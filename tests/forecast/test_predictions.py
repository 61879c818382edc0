"""The predicted peak memory compared with the measured one, and the advice if a stage does not fit."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from scripts import load_script

from alignment_core.execution.stage import Runtime, StageCall
from alignment_core.forecast.predictions import Prediction, _remedy

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "plan_memory.py"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", range(4))
def test_peak_memory_is_predicted_within_20_percent(number: int) -> None:
    """Test random runs. Set the environment variable PLAN_SEED to draw others."""
    benchmark = load_script(BENCHMARK)
    case = benchmark.drawn(random.Random(f"{os.environ.get('PLAN_SEED', '0')} {number}"))
    print(case)
    rows = list(benchmark.measure("drawn", case))
    for row in rows:
        print(row, f"{row.error:+.1%}")
    assert {"sft", "optimize", "evaluate_sft", "evaluate"} < {row.stage for row in rows}
    assert [row for row in rows if abs(row.error) > 0.2] == []


@pytest.mark.parametrize(
    ("largest", "settings", "advice"),
    [
        ("base", {}, "`model.load_in: nf4`"),
        ("passes", {}, "Lower `model.max_length`"),
        ("passes", {"token_budget": 8192}, "Set `token_budget: auto`"),
        ("passes", {"gradient_checkpointing": False}, "Set `gradient_checkpointing: auto`"),
        ("training", {}, "`model.lora.rank`"),
    ],
)
def test_the_remedy_targets_the_largest_part(largest: str, settings: dict[str, Any], advice: str) -> None:
    memory = dict.fromkeys(("process", "base", "loading", "adapters", "training", "passes"), 10) | {largest: 1000}
    stage = Prediction(
        rows=1, tokens=1, steps=1, token_budget=64, gradient_checkpointing=True, memory=memory, available=500,
        seconds=None, ample=True,
    )  # fmt: skip
    call = StageCall(
        stage="sft", key="k", label="sft", config={"load_in": "fp32"}, parents={}, inputs={},
        runtime=Runtime(store=Path("store"), **settings),
    )  # fmt: skip
    assert not stage.fits
    assert advice in _remedy(stage, call)
