"""What a person sees while stages run: a view that no line tears, or plain lines."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from screen import PICTURE, Screen, python, run_in_terminal

from alignment_flows.terminal import run_view

SCRIPT = f"""
import logging, os, sys
os.environ["PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"] = "ignore"
from alignment_flows.terminal.run_view import current_view
from alignment_flows.terminal.shown_run import shown_run

with shown_run(linked=True):
    from prefect import flow  # as a command does that imports its flow only now

    view = current_view()
    view.plan(["ingest · m · 1", "dpo · m · 2", "evaluate dpo · m · 3", "versus sft · m · 4"], "http://server/run/1")
    view.begin("ingest · m · 1")
    view.end("found in the store")
    view.begin("dpo · m · 2")
    for step in range(1, 41):
        loss = 1 - step / 80
        view.step(step, 80, "40 s left", {{"grad_norm": 1.0, "loss": loss, "reward_margin": step / 40}})
        if step == 20:
            view.log("a `line` of the stage, which is a good deal longer than a terminal of sixty columns")
            logging.getLogger("prefect.flow_runs").warning("a warning in the log")
            logging.getLogger("prefect.flow_runs").info("nobody needs this")
            logging.getLogger("some.library").warning("a warning of a library")
            print("a line on stderr", file=sys.stderr)
            print("a line on stdout")
    if live := getattr(view, "_live", None):
        live.refresh()
        sys.__stderr__.write({PICTURE!r})
        sys.__stderr__.flush()
    view.end("built in 4 s")
    view.begin("evaluate dpo · m · 3")
    view.end("failed after 2 s", well=False)
print("the end")
"""

LONG = "a line of the stage, which is a good deal longer than a terminal of sixty columns"
MIDDLE = ["WARNING: a warning in the log", "WARNING: a warning of a library", "a line on stderr", "a line on stdout"]


def unwrapped(lines: list[str], width: int) -> list[str]:
    """Join what was wrapped at spaces: a line goes on where the next word did not fit."""
    joined: list[str] = []
    last = ""
    for line in lines:
        if joined and last and len(last) + 1 + len(line.split(" ")[0]) > width:
            joined[-1] += f" {line}"
        else:
            joined.append(line)
        last = line
    return joined


@pytest.mark.parametrize("width", [60, pytest.param(80, marks=pytest.mark.ci), 200])
def test_view_is_redrawn_in_place_and_no_line_tears_it(width: int) -> None:
    code, written = run_in_terminal(python(SCRIPT), width)
    screen = Screen(width)
    screen.write(written)
    assert code == 0, written
    stays = [
        "This run in Prefect: http://server/run/1",
        "✓ ingest  found in the store",
        f"  dpo: {LONG}",
        *MIDDLE,
    ]
    end = [
        "✓ dpo  built in 4 s  loss 0.988 → 0.5  reward_margin 0.025 → 1",
        "✗ evaluate dpo  failed after 2 s",
        "the end",
    ]
    assert unwrapped(screen.shown(), width) == stays + end

    (picture,) = screen.pictures
    assert max(map(len, picture)) <= width
    view = picture[next(row for row, line in enumerate(picture) if line.startswith("stage 2 of 4")) :]
    assert re.fullmatch(r"stage 2 of 4 · \d:\d\d", view[0])
    full, rest = {60: (18, 17), 80: (20, 20), 200: (20, 20)}[width]
    assert view[1] == f"▸ dpo  {'━' * full}{'─' * rest}  40/80  40 s left"
    assert view[2].split() == ["loss", "0.5", "reward_margin", "1"]
    assert view[3].split()[0] == "0.988", "the largest loss"
    assert view[6].split()[0] == "0.5", "the smallest loss"
    columns = {60: 27, 80: 37, 200: 52}[width] - 8
    for line in view[3:7]:
        assert sum("⠀" <= character <= "⣿" for character in line) == 2 * columns
    assert view[7:] == ["  then evaluate dpo, versus sft"]


CAN_REDRAW = "from alignment_flows.terminal.capability import can_redraw; print(can_redraw())"


@pytest.mark.parametrize(
    ("width", "environment", "redraws"),
    [
        (60, {}, True),
        (59, {}, False),
        (80, {"NO_COLOR": "1"}, False),
        (80, {"NO_COLOR": ""}, True),  # as no-color.org says
        (80, {"CI": "true"}, False),
        (80, {"TERM": "dumb"}, False),
        (80, {"TERM": "linux"}, False),
        (80, {"PYTHONIOENCODING": "latin-1"}, False),
    ],
)
def test_only_a_capable_terminal_is_redrawn(width: int, environment: dict[str, str], redraws: bool) -> None:
    assert run_in_terminal(python(CAN_REDRAW), width, environment=environment) == (0, f"{redraws}\r\n")


def test_a_file_is_not_redrawn(tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    command = ["sh", "-c", f"\"$0\" -c '{CAN_REDRAW}' 2> {errors}", sys.executable]
    assert run_in_terminal(command, 80) == (0, "False\r\n")


def test_plain_lines_where_a_view_cannot_be_redrawn() -> None:
    code, written = run_in_terminal(python(SCRIPT), 80, environment={"NO_COLOR": "1"})
    assert code == 0, written
    assert "\x1b" not in written
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in written.split("\r\n")]
    assert lines == [
        "This run in Prefect: http://server/run/1",
        "[1/4] ingest: found in the store",
        f"[2/4] dpo: {LONG}",
        *MIDDLE,
        "[2/4] dpo: built in 4 s  loss 0.988 -> 0.5  reward_margin 0.025 -> 1",
        "[3/4] evaluate dpo: failed after 2 s",
        "the end",
        "",
    ]


def test_plain_lines_tell_the_newest_step_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(run_view.time, "monotonic", lambda: now)
    view = run_view.RunView(linked=False)
    view.plan(["kto · m · 1", "evaluate kto · m · 2"], "http://a/server/that/stops")
    view.begin("kto · m · 1")
    for step in range(26):
        view.step(step, 50, "", {"logps": -3.0, "loss": 0.5, "kl": step / 2, "length": 8.0, "grad_norm": 1.0})
        now += 1
    lines = [line[9:] for line in capsys.readouterr().err.splitlines()]
    # No link, because the server stops with the run. Steps 11 and 22 are the first after more than 10 s.
    # What never changes comes last.
    assert lines == [
        "[1/2] kto: 11/50  kl 5.5  loss 0.5  logps -3  length 8",
        "[1/2] kto: 22/50  kl 11  loss 0.5  logps -3  length 8",
    ]


def test_stage_of_one_step_shows_its_only_value(capsys: pytest.CaptureFixture[str]) -> None:
    view = run_view.RunView(linked=False)
    view.plan(["sft · m · 1"], "http://a/server/that/stops")
    view.begin("sft · m · 1")
    view.step(1, 1, "", {"loss": 7.789})
    view.end("built in 1 s")
    assert capsys.readouterr().err.splitlines()[-1].endswith("[1/1] sft: built in 1 s  loss 7.79")
