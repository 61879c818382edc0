"""`align demo` as a new user runs it: every optimizer changes the model, and a second run trains nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignment_core.execution.build import StageResult, build
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_flows.demo import demo_config

FOUR_DEVIATIONS = 4
"""Required improvement in standard deviations. An optimizer without effect passes once in 30,000 runs."""


def run_demo(folder: Path, seed: int) -> tuple[dict[str, dict[str, Any]], str]:
    """Run the demo. Return the report's numbers by model, and the printed output."""
    command = [Path(sys.executable).with_name("align"), "demo", "--folder", folder, "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    assert (folder / "report.png").stat().st_size > 10_000
    return {line["model"]: line for line in json.loads((folder / "report.json").read_text())}, done.stdout


def check_moved(lines: dict[str, dict[str, Any]]) -> None:
    """Check that each optimizer's share of good answers exceeds SFT's by more than chance and its KL is above 0."""
    assert list(lines) == ["sft", "dpo", "kto", "ppo"]
    sft = lines.pop("sft")
    assert sft["kl"] == 0
    assert sft["reward_accuracy"] > 0.8
    for name, line in lines.items():
        error = (sft["rule_error"] ** 2 + line["rule_error"] ** 2) ** 0.5
        assert line["rule"] > sft["rule"] + FOUR_DEVIATIONS * error, (name, line, sft)
        assert line["kl"] > 0.5


@pytest.mark.ci
@pytest.mark.timeout(1800)
def test_demo_moves_every_optimizer_and_runs_once(tmp_path: Path) -> None:
    lines, printed = run_demo(tmp_path, seed=0)
    assert re.search(r"18 stages built, 0 cached", printed)
    again, printed = run_demo(tmp_path, seed=0)
    assert re.search(r"0 stages built, 18 cached: world, ingest, sft", printed)
    assert again == lines
    check_moved(lines)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [1, 2])
def test_demo_moves_every_optimizer_with_other_seeds(tmp_path: Path, seed: int) -> None:
    check_moved(run_demo(tmp_path, seed)[0])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_demo_shows_a_loss_with_the_wrong_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_demo(tmp_path, seed=0)
    store = tmp_path / "artifacts"
    shutil.rmtree(store / "optimize")
    from alignment_core.losses import preference

    right = preference.dpo
    monkeypatch.setattr(preference, "dpo", lambda chosen, rejected, **settings: right(rejected, chosen, **settings))
    (world,) = (store / "demo_world").iterdir()
    config = demo_config(world, store, 0, "dpo").model_copy(update={"isolation": "inline"})
    plan = plan_pipeline(config, load_registry())
    shutil.rmtree(store / "evaluate" / plan.evaluate.key)
    built: dict[str, StageResult] = {name: build(call, Silent()) for name, call in plan.calls().items()}
    assert [name for name, stage in built.items() if not stage.cached] == ["optimize", "evaluate"]
    rule = {name: built[name].metrics["wordlist_mean"] for name in ("evaluate_sft", "evaluate")}
    assert rule["evaluate"] < rule["evaluate_sft"]
