"""Listeners receive the events of every stage, and a failing listener does not stop a stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from runs import Listener as Recorder

from alignment_core.errors import DataError, PluginError
from alignment_core.execution.build import build
from alignment_core.execution.stage import StageCall

BROKEN = """
    from typing import Literal
    from alignment_core.plugin_api import Listener, hookimpl

    class Broken(Listener):
        name: Literal["broken"] = "broken"
        def step(self, stage, done, total, metrics): raise OSError("the dashboard is away")

    @hookimpl
    def alignment_listeners():
        return [Broken]
"""


def with_listeners(call: StageCall, *listeners: Mapping[str, Any]) -> StageCall:
    return call.model_copy(
        update={"runtime": call.runtime.model_copy(update={"run": "mine", "listeners": tuple(map(dict, listeners))})}
    )


@pytest.mark.parametrize("isolation", ["inline", "process"])
def test_json_lines_record_a_stage_from_start_to_end(
    probe: Callable[..., StageCall], tmp_path: Path, isolation: str
) -> None:
    file = tmp_path / "new folder" / "metrics.jsonl"
    call = with_listeners(probe("report", isolation), {"name": "jsonl", "path": str(file)})
    build(call, Recorder())
    build(call, Recorder())
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    events = [line["event"] for line in lines]
    assert (events[0], events[-2:]) == ("started", ["finished", "cached"])
    assert "step" in events
    assert {(line["run"], line["stage"], line["key"]) for line in lines} == {("mine", "probe", call.key)}
    assert lines[-2]["metrics"] == lines[-1]["metrics"]


def test_a_failure_is_recorded_and_raised(probe: Callable[..., StageCall], tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    call = with_listeners(probe("user error", "inline"), {"name": "jsonl", "path": str(file)})
    with pytest.raises(DataError, match="no rows") as caught:
        build(call, Recorder())
    last = json.loads(file.read_text().splitlines()[-1])
    assert last["event"] == "failed"
    assert str(caught.value) in last["error"]


def test_a_failing_listener_gives_one_warning_and_the_stage_continues(
    probe: Callable[..., StageCall], install: Callable[..., None], tmp_path: Path
) -> None:
    install("stranger-broken", BROKEN)
    file = tmp_path / "metrics.jsonl"
    recorder = Recorder()
    call = with_listeners(probe("report", "inline"), {"name": "broken"}, {"name": "jsonl", "path": str(file)})
    built = build(call, recorder)
    assert not built.cached
    where = f"`step` of the listener `broken` (stranger_broken), {call.label}"
    assert built.listener_errors == (f"{where}: it raised OSError: the dashboard is away",)
    first, *lines = recorder.warnings[0].splitlines()
    assert first == (
        f"a listener failed and receives no more events of this stage: {where}: it raised OSError: "
        "the dashboard is away. The last lines of the traceback:"
    )
    assert "stranger_broken.py" in lines[0]
    assert lines[-1] == "  OSError: the dashboard is away."
    assert sum("listener" in warning for warning in recorder.warnings) == 1
    assert json.loads(file.read_text().splitlines()[-1])["event"] == "finished"


def test_a_listener_changes_nothing(probe: Callable[..., StageCall], install: Callable[..., None]) -> None:
    meddling = BROKEN.replace('raise OSError("the dashboard is away")', "metrics.clear(); stage.settings.clear()")
    ending = "        def finished(self, stage, metrics, *, cached): metrics.clear(); raise SystemExit(3)\n"
    install("stranger-meddling", meddling.replace("    @hookimpl", f"{ending}\n    @hookimpl"))
    call = with_listeners(probe("report", "inline"), {"name": "broken"})
    settings = dict(call.config)
    built = build(call, Recorder())
    assert built.metrics == built.artifact.manifest().metrics
    assert built.metrics
    assert call.config == settings
    assert built.listener_errors[0].endswith("it raised SystemExit: 3")


def test_a_listener_that_is_not_installed_is_reported(probe: Callable[..., StageCall]) -> None:
    with pytest.raises(PluginError, match="no installed listener has this name"):
        build(with_listeners(probe("report", "inline"), {"name": "nobody"}), Recorder())
