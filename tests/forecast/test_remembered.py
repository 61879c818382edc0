"""A forecast is remembered, and computed again after a change of anything that it follows from."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment_core.execution.stage import Runtime, StageCall
from alignment_core.forecast import predict as predicting
from alignment_core.forecast import remembered
from alignment_core.forecast.predictions import Forecast, Prediction

GIB = 2**30


class World:
    """A plan, a machine, and the process that predicts, which is counted."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.patch, self.asked, self.free = patch, 0, 20 * GIB
        self.stage = Prediction(
            rows=1, tokens=1, steps=1, token_budget=4096, gradient_checkpointing=False, seconds=3.0, ample=True,
            memory={"process": GIB, "base": 5 * GIB}, available=19 * GIB,
        )  # fmt: skip
        self.made, self.on_cpu = time.time(), True
        self.calls = {"optimize": self.call("key")}
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(predicting, "call_module", self._call_module)
        patch.setattr(remembered, "free_on_cpu", lambda processes: self.free / processes)

    def call(self, key: str, **runtime: Any) -> StageCall:
        settings = Runtime(store=Path("store"), **runtime)
        return StageCall(stage="sft", key=key, label="", config={}, parents={}, inputs={}, runtime=settings)

    def _call_module(self, module: str, request: Any, what: str) -> dict[str, Any]:
        self.asked += 1
        forecast = Forecast(
            device="the CPU", parameters=1, trainable=1, rows={}, used={}, sampled=None, held_out={}, raters={},
            stages={"optimize": self.stage}, requests={}, on_cpu=self.on_cpu, made=self.made,
        )  # fmt: skip
        return forecast.model_dump(mode="json")

    def predict(self, card: float | None = None) -> Forecast:
        return predicting.predict(self.calls, ["optimize"], card)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_second_forecast_is_the_first_with_the_memory_of_now(world: World) -> None:
    first = world.predict()
    world.free = 11 * GIB
    second = world.predict()
    assert world.asked == 1
    # What the process takes is not free while it looks, but belongs to the stage: 0.9 (11 - 1) + 1.
    assert second.stages["optimize"].available == 10 * GIB
    assert second.model_copy(update={"stages": first.stages}) == first


def test_limit_of_the_settings_and_processes_that_share_the_memory_count(world: World) -> None:
    world.calls = {"optimize": world.call("key", memory_gb=7.0, gpus=2)}
    world.predict()
    assert world.predict().stages["optimize"].available == 7 * GIB
    world.free = 16 * GIB  # 0.9 (16 / 2 - 1) for each
    assert world.predict().stages["optimize"].available == round(6.3 * GIB)
    assert world.asked == 1


def _changed_key(world: World) -> None:
    world.calls = {"optimize": world.call("another key")}


def _changed_runtime(world: World) -> None:
    world.calls = {"optimize": world.call("key", token_budget=64)}


def _changed_code(world: World) -> None:
    world.patch.setattr(remembered, "PACKAGE", Path(__file__).parent)


def _changed_packages(world: World) -> None:
    world.patch.setattr(remembered, "installed_packages", lambda: ["torch-99.dist-info"])


def _changed_environment(world: World) -> None:
    world.patch.setenv("OMP_NUM_THREADS", "77")


def _another_machine(world: World) -> None:
    world.patch.setattr(remembered, "visible_cards", lambda: ["0", "1"])


def _a_day_later(world: World) -> None:
    now = time.time()
    world.patch.setattr(remembered.time, "time", lambda: now + 24 * 3600 + 1)


def _too_little_memory(world: World) -> None:
    world.free = 5 * GIB


def _damaged(world: World) -> None:
    (file,) = (Path(remembered.cache_folder()) / "forecasts").iterdir()
    file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize(
    "change",
    [
        _changed_key,
        _changed_runtime,
        _changed_code,
        _changed_packages,
        _changed_environment,
        _another_machine,
        _a_day_later,
        _too_little_memory,
        _damaged,
    ],
)
def test_forecast_is_computed_again_after_a_change(world: World, change: Callable[[World], None]) -> None:
    world.predict()
    change(world)
    world.predict()
    assert world.asked == 2


def test_more_memory_matters_only_to_a_stage_that_had_too_little_for_the_best_settings(world: World) -> None:
    world.stage = world.stage.model_copy(update={"ample": False})
    world.predict()
    world.free = 15 * GIB
    world.predict()
    assert world.asked == 1
    world.free = 30 * GIB
    world.predict()
    assert world.asked == 2


def test_a_forecast_for_a_card_does_not_depend_on_the_free_memory(world: World) -> None:
    world.on_cpu = False
    world.predict(card=24.0)
    world.free = GIB
    world.predict(card=24.0)
    assert world.asked == 1
    world.predict(card=12.0)
    assert world.asked == 2


def test_forecasts_of_a_gpu_are_not_remembered(world: World) -> None:
    world.on_cpu = False
    world.predict()
    world.predict()
    assert world.asked == 2


def test_old_forecasts_are_removed(world: World) -> None:
    world.predict()
    _a_day_later(world)
    world.predict()
    _changed_key(world)
    world.made = remembered.time.time()
    world.predict()
    assert len([*(remembered.cache_folder() / "forecasts").iterdir()]) == 1


def test_an_unusable_cache_folder_changes_nothing(world: World, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert world.predict() == world.predict()
    assert world.asked == 2
