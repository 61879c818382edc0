"""The generated reference pages are up to date, and the metrics page names every metric of a run."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment_core.config_file import load_config
from alignment_core.execution.build import build_here
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.progress import Silent
from alignment_core.registry import load_registry

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
FREE = (
    "used",
    "ignored",
    "rows",
    "conversions",
    "duplicates",
    "votes",
    "balance",
    "fit",
    "targets",
    "overlap",
    "win_rate",
    "safety",
    "checks",
)
"""Groups whose members the metrics page describes together."""


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script that writes the pages, called with `--check`."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "tools")
    monkeypatch.setattr(sys, "argv", ["reference.py", "--check"])
    return importlib.import_module("reference")


def test_generated_pages_are_up_to_date(reference: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main() == 0, capsys.readouterr().err


def test_check_notices_an_outdated_page(
    reference: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "REFERENCE", tmp_path)
    assert reference.main() == 1
    assert "settings.md" in capsys.readouterr().err


def documented() -> set[str]:
    text = "".join((REFERENCE / name).read_text(encoding="utf-8") for name in ("metrics.md",))
    text += "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "optimizers").glob("*.md"))
    names = re.findall(r"`([\w.]+)`", text)
    return {*names, *(name.partition(".")[0] for name in names)}


def names(metrics: dict[str, Any]) -> Iterator[str]:
    for name, value in metrics.items():
        yield name
        if isinstance(value, dict) and name not in FREE:
            yield from value


@pytest.mark.ci
def test_every_metric_of_a_run_is_documented(write: Callable[..., Path]) -> None:
    """Run KTO on pairs with a reward model, an evaluator and a gate, which covers most stages."""
    rule = {"name": "wordlist", "wanted": ["it"]}
    evaluation = {"max_prompts": 2, "max_new_tokens": 8, "evaluators": [rule], "reward_model": True}
    path = write(optimizer={"name": "kto", "batch_size": 8}, evaluation=evaluation, gate={}, isolation="inline")
    found: set[str] = set()
    for call in plan_pipeline(load_config(path), load_registry()).calls().values():
        artifact, _ = build_here(call, Silent())
        found |= set(names(artifact.manifest().metrics))
    known = documented() | {"wordlist_mean", "reward_mean", "reward_orders_as_wordlist"}
    assert {"kl", "loss", "passed", "win_rate"} <= found
    assert sorted(found - known) == []
