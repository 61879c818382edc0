"""The kit for record formats and listeners passes correct ones and finds every seeded fault with the right check."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from faulty_kinds import (
    FORMAT_FAULTS,
    LISTENER_FAULTS,
    ROWS,
    EndsWell,
    LeavesColumns,
    NoRows,
    SoundFormat,
    SoundListener,
)

from alignment_core.plugin_api import Listener, RecordFormat, StageInfo
from alignment_core.testing import Report, check_format, check_listener
from alignment_plugins.jsonl import JsonLines


def outcome(report: Report, check: str) -> tuple[str, str]:
    (result,) = [result for result in report.results if result.check == check]
    return result.outcome, result.detail


@pytest.mark.parametrize("sound", [SoundFormat, EndsWell])
def test_correct_format_passes(sound: type[RecordFormat]) -> None:
    report = check_format(sound)
    report.assert_passed()
    assert {result.outcome for result in report.results} == {"passed"}
    assert outcome(report, "reads its rows")[1] == "2 Prompt, 1 dropped"
    # Each of two columns is left out once and replaced five times, and one row is no object.
    assert outcome(report, "bad rows")[1] == "13 rows"


def test_rows_can_be_given() -> None:
    report = check_format(NoRows, ROWS[:1])
    report.assert_passed()
    assert outcome(report, "reads its rows")[1] == "1 Prompt"


@pytest.mark.parametrize("faulty", FORMAT_FAULTS)
def test_fault_of_a_format_is_found(faulty: type[RecordFormat]) -> None:
    check, reason = FORMAT_FAULTS[faulty]
    failed, detail = outcome(check_format(faulty), check)
    assert failed == "failed"
    assert reason in detail


def test_columns_that_are_not_read_are_a_warning() -> None:
    assert outcome(check_format(LeavesColumns), "reads every column") == (
        "warning",
        "not read: flavour. Name columns that change nothing in `unused`",
    )


@pytest.mark.parametrize(("sound", "file"), [(SoundListener, "events.txt"), (JsonLines, "metrics.jsonl")])
def test_correct_listener_passes(sound: type[Listener], file: str) -> None:
    report = check_listener(sound)
    report.assert_passed()
    assert {result.outcome for result in report.results} == {"passed"}
    assert not Path(file).exists()


def test_settings_of_a_listener(tmp_path: Path) -> None:
    check_listener(SoundListener, events=tmp_path / "here.txt").assert_passed()
    lines = (tmp_path / "here.txt").read_text().splitlines()
    # A built stage with five steps, then one that is found.
    assert lines[:8] == ["optimize", "0 5 0", "1 5 3", "2 5 3", "3 5 3", "4 5 3", "5 False", "2 True"]


class Twin(JsonLines):
    """Its settings are those of `jsonl`."""

    name: Literal["twin"] = "twin"  # type: ignore[assignment]


class WithOptionalPath(Listener):
    """A form with `path` given opens `jsonl`, and one without `path` opens this: they are told apart."""

    name: Literal["optional-path"] = "optional-path"
    url: str = "http://localhost"
    """Where."""
    path: Path | None = None
    """File."""

    def started(self, stage: StageInfo) -> None:
        pass


def test_plugins_with_the_same_settings_are_a_warning() -> None:
    twin, detail = outcome(check_listener(Twin), "told apart in forms")
    assert twin == "warning"
    assert "cannot tell it from `jsonl` of alignment-flows" in detail
    assert "those of one (name, path) are also settings of the other" in detail
    assert outcome(check_listener(WithOptionalPath), "told apart in forms") == ("passed", "")


@pytest.mark.parametrize("faulty", LISTENER_FAULTS)
def test_fault_of_a_listener_is_found(faulty: type[Listener]) -> None:
    check, reason = LISTENER_FAULTS[faulty]
    failed, detail = outcome(check_listener(faulty), check)
    assert failed == ("warning" if check == "fast" else "failed")
    assert reason in detail
