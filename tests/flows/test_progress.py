"""A stage's progress in the log and on the run's page, and how often both are updated."""

from __future__ import annotations

import logging

import httpx
import pytest

from alignment_flows import progress
from alignment_flows.progress import StageProgress


class Clock:
    """A clock that the test sets."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of logged messages."""
    messages: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger = logging.Logger("stage")
    logger.addHandler(Lines())
    monkeypatch.setattr(progress, "get_run_logger", lambda: logger)
    return messages


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the list of percentages shown on the run's page."""
    shown: list[float] = []
    monkeypatch.setattr(progress, "create_progress_artifact", lambda percent, description: shown.append(percent) or 1)
    monkeypatch.setattr(progress, "update_progress_artifact", lambda page, percent, description: shown.append(percent))
    return shown


def test_log_and_page_are_updated_at_a_limited_rate(clock: Clock, lines: list[str], page: list[float]) -> None:
    with StageProgress("sft") as listener:
        for step in range(1, 101):
            clock.now += 1
            listener.step(step, 100, {"loss": 1 / step})
    # In 100 s, the log is updated every 10 s and at the end, and the page every 3 s, at the first step after that time.
    assert len(lines) == 10
    assert lines[0] == "sft 11/100, 89 s left  loss 0.09091"
    assert lines[-1] == "sft 100/100  loss 0.01"
    assert page == [*(float(percent) for percent in range(4, 101, 4)), 100.0]


def test_page_ends_with_the_last_step(clock: Clock, lines: list[str], page: list[float]) -> None:
    with StageProgress("sft · tiny · 3f2a") as listener:
        clock.now += 4
        listener.step(1, 4)
        listener.step(4, 4)
    assert page == [25.0, 100.0]


def test_time_left_of_a_resumed_stage_is_estimated_from_its_new_steps(
    clock: Clock, lines: list[str], page: list[float]
) -> None:
    with StageProgress("sft · tiny · 3f2a") as listener:
        listener.step(500, 600)
        clock.now += 20
        listener.step(520, 600)
    assert lines == ["sft 520/600, 80 s left"]


def test_step_zero_is_not_logged(clock: Clock, lines: list[str], page: list[float]) -> None:
    with StageProgress("ingest · tiny · 3f2a") as listener:
        listener.step(0, 1)
        listener.log("a file")
    assert lines == ["a file"]


def test_newest_step_is_logged_before_later_messages(clock: Clock, lines: list[str], page: list[float]) -> None:
    with StageProgress("sft") as listener:
        listener.step(1, 2)
        listener.log("saved")
        listener.warn("odd")
    assert lines == ["sft 1/2", "saved", "odd"]
    assert page == []


def test_unreachable_server_does_not_stop_a_stage(
    clock: Clock, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(percent: float, description: str) -> None:
        raise httpx.ConnectError("nobody there")

    monkeypatch.setattr(progress, "create_progress_artifact", unreachable)
    with StageProgress("sft") as listener:
        clock.now += 4
        listener.step(1, 2)
        listener.step(2, 2)
    assert lines == ["could not update the page in Prefect: nobody there", "sft 2/2"]


def test_programming_error_is_not_hidden(clock: Clock, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "create_progress_artifact", lambda percent: None)
    with StageProgress("sft") as listener:
        clock.now += 4
        with pytest.raises(TypeError):
            listener.step(1, 2)
