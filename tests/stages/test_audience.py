"""Listeners hear every stage, change no key, and harm no stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from runs import Listener as Watcher

from alignment_core.errors import DataError, PluginError
from alignment_core.stages.base import StageCall
from alignment_core.stages.build import build

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


def heard_by(call: StageCall, *listeners: Mapping[str, Any]) -> StageCall:
    return call.model_copy(
        update={"runtime": call.runtime.model_copy(update={"run": "mine", "listeners": tuple(map(dict, listeners))})}
    )


@pytest.mark.parametrize("isolation", ["inline", "process"])
def test_json_lines_tell_a_stage_from_start_to_end(
    probe: Callable[..., StageCall], tmp_path: Path, isolation: str
) -> None:
    file = tmp_path / "new folder" / "metrics.jsonl"
    call = heard_by(probe("report", isolation), {"name": "jsonl", "path": str(file)})
    build(call, Watcher())
    build(call, Watcher())
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    events = [line["event"] for line in lines]
    assert (events[0], events[-2:]) == ("started", ["finished", "cached"])
    assert "step" in events
    assert {(line["run"], line["stage"], line["key"]) for line in lines} == {("mine", "probe", call.key)}
    assert lines[-2]["metrics"] == lines[-1]["metrics"]


def test_a_failure_is_told_and_still_raised(probe: Callable[..., StageCall], tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    call = heard_by(probe("user error", "inline"), {"name": "jsonl", "path": str(file)})
    with pytest.raises(DataError, match="no rows") as caught:
        build(call, Watcher())
    last = json.loads(file.read_text().splitlines()[-1])
    assert last["event"] == "failed"
    assert str(caught.value) in last["error"]


def test_a_broken_listener_is_warned_about_once_and_the_stage_goes_on(
    probe: Callable[..., StageCall], install: Callable[..., None], tmp_path: Path
) -> None:
    install("stranger-broken", BROKEN)
    file = tmp_path / "metrics.jsonl"
    watcher = Watcher()
    call = heard_by(probe("report", "inline"), {"name": "broken"}, {"name": "jsonl", "path": str(file)})
    built = build(call, watcher)
    assert not built.cached
    assert built.untold == ("`broken`: OSError: the dashboard is away",)
    assert watcher.warnings[:1] == [
        "the listener `broken` failed and hears no more of this stage: OSError: the dashboard is away"
    ]
    assert sum("listener" in warning for warning in watcher.warnings) == 1
    assert json.loads(file.read_text().splitlines()[-1])["event"] == "finished"


def test_a_listener_that_is_not_installed_here_is_named(probe: Callable[..., StageCall]) -> None:
    with pytest.raises(PluginError, match="no installed listener has this name"):
        build(heard_by(probe("report", "inline"), {"name": "nobody"}), Watcher())
