"""How a stage's death is told: by which signal, or that memory ran out, and what its log said last."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alignment_core.errors import StageCrashed
from alignment_core.progress import Silent
from alignment_core.stages.base import StageCall
from alignment_core.stages.build import build

Call = Callable[..., StageCall]

LIMIT_MB = 300


@pytest.mark.parametrize(
    ("by", "fault"),
    [
        ("SIGKILL", ""),
        ("SIGSEGV", "Fatal Python error: Segmentation fault"),
        ("SIGABRT", "Fatal Python error: Aborted"),
    ],
)
def test_signal_is_named_with_the_last_lines_of_the_log(probe: Call, by: str, fault: str) -> None:
    with pytest.raises(StageCrashed) as caught:
        build(probe("die by", signal=signal.Signals[by].value), Silent())
    what, _, log = str(caught.value).partition(". The last lines of its log:\n")
    again = "Run again: it goes on from the last checkpoint"
    assert what == f"probe · die by: the stage's process was killed by {by}. {again}"
    assert "  a line of the log\n  about to die" in log
    assert fault in log
    assert bool(fault) == ("in _die" in log), "where in the code it died"


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A control group of the system whose processes have `LIMIT_MB` of memory together."""
    version_1 = Path("/sys/fs/cgroup/memory")
    group = (version_1 if version_1.is_dir() else Path("/sys/fs/cgroup")) / f"align-tests-{os.getpid()}"
    limit = "memory.limit_in_bytes" if version_1.is_dir() else "memory.max"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a control group here: {error}")
    try:
        if not (group / limit).exists():
            pytest.skip("control groups have no limit of memory here")
        (group / limit).write_text(f"{LIMIT_MB}M")
        yield group
    finally:
        group.rmdir()


def test_kill_for_want_of_memory_is_told_as_that(probe: Call, small_cgroup: Path) -> None:
    with pytest.raises(StageCrashed, match="the system killed the stage's process because memory ran out") as caught:
        build(probe("eat", cgroup=str(small_cgroup), megabytes=2 * LIMIT_MB), Silent())
    assert "Lower `token_budget`" in str(caught.value)
    assert "a line of the log" in str(caught.value)
    survived = build(probe("eat", cgroup=str(small_cgroup), megabytes=LIMIT_MB // 10), Silent())
    assert survived.metrics["starts"] == 1
