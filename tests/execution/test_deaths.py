"""Error messages for a killed stage: the signal or out of memory, with the last lines of its log."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alignment_core.errors import StageCrashed
from alignment_core.execution.build import build
from alignment_core.execution.stage import StageCall
from alignment_core.progress import Silent

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
def test_error_names_the_signal_and_shows_the_last_log_lines(probe: Call, by: str, fault: str) -> None:
    with pytest.raises(StageCrashed) as caught:
        build(probe("die by", signal=signal.Signals[by].value), Silent())
    what, _, log = str(caught.value).partition(". The last lines of its log:\n")
    again = "Run again. The stage resumes from its last checkpoint"
    assert what == f"probe · die by: the stage's process was killed by {by}. {again}"
    assert "  a line of the log\n  about to die" in log
    assert fault in log
    assert bool(fault) == ("in _die" in log), "a fatal error shows where in the code it happened"


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """Make a control group that limits the total memory of its processes to `LIMIT_MB`."""
    version_1 = Path("/sys/fs/cgroup/memory")
    group = (version_1 if version_1.is_dir() else Path("/sys/fs/cgroup")) / f"align-tests-{os.getpid()}"
    limit = "memory.limit_in_bytes" if version_1.is_dir() else "memory.max"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"cannot create a control group here: {error}")
    try:
        if not (group / limit).exists():
            pytest.skip("control groups have no memory limit here")
        (group / limit).write_text(f"{LIMIT_MB}M")
        yield group
    finally:
        group.rmdir()


def test_out_of_memory_kill_is_reported(probe: Call, small_cgroup: Path) -> None:
    with pytest.raises(StageCrashed, match="out of memory: the system killed the stage's process") as caught:
        build(probe("eat", cgroup=str(small_cgroup), megabytes=2 * LIMIT_MB), Silent())
    assert "Lower `token_budget`" in str(caught.value)
    assert "a line of the log" in str(caught.value)
    survived = build(probe("eat", cgroup=str(small_cgroup), megabytes=LIMIT_MB // 10), Silent())
    assert survived.metrics["starts"] == 1
