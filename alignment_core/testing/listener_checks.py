"""Checks of a listener: the events of a stage that is built, of one that is found, and of one that fails."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignment_core.plugin_api import Listener, StageInfo
from alignment_core.plugin_calls import calling
from alignment_core.temporary import temporary_folder
from alignment_core.testing.limits import CALL_SECONDS, overhearing, time_limit
from alignment_core.testing.report import Doubt, Report
from alignment_core.testing.settings_checks import check_settings

STEPS = 5
SLOW = 0.1
"""Seconds of one `step` from which it slows training down noticeably."""
METRICS = {"loss": 0.69, "grad_norm": 1.5, "learning_rate": 1e-4}


def check_events(listener: type[Listener], settings: dict[str, Any]) -> Report:
    """Run all checks on a listener with these settings."""
    report = Report(listener.__name__)
    with overhearing() as heard, _temporary_folder() as folder:
        if check_settings(report, listener, Listener, settings):
            with report.checking("a stage is built"):
                _build(listener(**settings), _stage(folder, "optimize"))
            with report.checking("a stage is found"):
                _call(listener(**settings), "finished", _stage(folder, "sft"), {"rows": 3, "note": None}, cached=True)
            with report.checking("a stage fails"):
                _fail(listener(**settings), _stage(folder, "reward"))
            with report.checking("two stages at a time"):
                _side_by_side(listener, settings, folder)
            with report.checking("fast") as shown:
                shown.append(_speed(listener(**settings), _stage(folder, "optimize")))
            report.add_output(heard)
    return report


def _build(listener: Listener, stage: StageInfo) -> None:
    _call(listener, "started", stage)
    # The first report of a stage has no metrics yet.
    for done in range(STEPS):
        _call(listener, "step", stage, done, STEPS, {**METRICS, "loss": 1 / (1 + done)} if done else {})
    _call(listener, "finished", stage, {**METRICS, "warnings": [], "by_kind": {"a": 1}}, cached=False)


def _fail(listener: Listener, stage: StageInfo) -> None:
    _call(listener, "started", stage)
    _call(listener, "failed", stage, "the data contain no rows for this stage.\nAdd a source")


def _side_by_side(listener: type[Listener], settings: dict[str, Any], folder: Path) -> None:
    stages = [_stage(folder, name) for name in ("evaluate", "evaluate_sft")]
    pairs = [(listener(**settings), stage) for stage in stages]
    for one, stage in pairs:
        _call(one, "started", stage)
    for one, stage in pairs:
        _call(one, "step", stage, 1, 1, METRICS)
    for one, stage in pairs:
        _call(one, "finished", stage, METRICS, cached=False)


def _speed(listener: Listener, stage: StageInfo) -> str:
    _call(listener, "started", stage)
    started = time.perf_counter()
    for done in range(STEPS):
        _call(listener, "step", stage, done, STEPS, METRICS)
    seconds = (time.perf_counter() - started) / STEPS
    if seconds > SLOW:
        raise Doubt(f"one `step` takes {seconds:.2f} s, and training waits for it")
    return f"{1000 * seconds:.1f} ms per step"


def _call(listener: Listener, method: str, stage: StageInfo, *details: Any, **more: Any) -> None:
    what = f"`{method}` of a stage"
    with time_limit(CALL_SECONDS, what), calling(listener, method):
        getattr(listener, method)(stage, *details, **more)


def _stage(folder: Path, name: str) -> StageInfo:
    artifact = folder / name
    artifact.mkdir(exist_ok=True)
    settings = {"optimizer": {"name": "dpo", "beta": 0.1}, "seed": 0}
    return StageInfo("check", name, f"{name} · tiny · 3f2a", "0" * 64, settings, artifact)


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Make a temporary folder the working directory, so that files of relative paths are removed again."""
    with temporary_folder("check") as folder, contextlib.chdir(folder):
        yield folder
