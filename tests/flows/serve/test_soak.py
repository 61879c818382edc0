"""Many small retrains on one worker: memory, handles, files, disk after pruning and the time of a run do not grow.

SOAK_RETRAINS is their number (default 6), SOAK_MINUTES ends them earlier, and SOAK_OUT is a file for the table:

    SOAK_RETRAINS=100 SOAK_OUT=benchmarks/results/soak.md pytest -m slow tests/flows/serve/test_soak.py
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import psutil
import pytest
from report import circumstances_line
from served import Served, align_up, until

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.prune import prune
from alignment_core.feedback import Rater, open_feedback

pytestmark = [pytest.mark.slow, pytest.mark.timeout(24 * 3600)]

RETRAINS = int(os.environ.get("SOAK_RETRAINS", "6"))
MINUTES = float(os.environ.get("SOAK_MINUTES", "600"))
PRUNED = max(1, RETRAINS // 20)
"""Retrains between two prunings. Each row of the table comes after a pruning."""
MB = 2**20
GROWTH = {
    "worker MB": 1.05,
    "stages MB": 1.05,
    "server MB": 1.2,  # its caches fill
    "worker handles": 1.0,
    "stages handles": 1.0,
    "server handles": 1.1,
    "temporary files": 1.0,
    "store files": 1.02,
    "store MB": 1.1,  # the votes grow
    "CPU s per run": 1.2,
}
"""By how much the median of the last third may exceed that of the first. The wall time depends on other programs."""
SLACK = 1.0
"""What it may exceed it by in any case, in the unit of the column."""


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def vote(place: Path, number: int) -> None:
    """Vote on two new responses."""
    with open_feedback(str(place)) as store:
        for up in (True, False):
            prompt = ({"role": "user", "content": f"Tell me something about the number {number}."},)
            store.thumb(Rater("Ann"), store.add_response(prompt, f"I {'like' if up else 'hate'} {number}.", "m"), up)


def cpu_seconds(here: Served) -> float:
    """Return the CPU time of the worker, of the fork server, and of all their processes that have ended."""
    services = here.services()
    return float(sum(sum(psutil.Process(services[name]).cpu_times()[:4]) for name in ("gpu", "stages")))


def measure(here: Served, store: Path, temporary: Path) -> dict[str, float]:
    """Prune the store and return what is left."""
    prune(ArtifactStore(store))
    cleaned = time.monotonic() + 60  # the worker cleans up some time after the run
    while files(temporary) and time.monotonic() < cleaned:
        time.sleep(0.2)
    names = {"worker": "gpu", "stages": "stages", "server": "server"}
    services = {name: psutil.Process(here.services()[service]) for name, service in names.items()}
    left = files(store)
    return {
        **{f"{name} MB": process.memory_info().rss / MB for name, process in services.items()},
        **{f"{name} handles": process.num_fds() for name, process in services.items()},
        "temporary files": len(files(temporary)),
        "store files": len(left),
        "store MB": sum(path.stat().st_size for path in left) / MB,
    }


def table(rows: Sequence[Mapping[str, float]]) -> str:
    """Return the measurements as Markdown."""
    count = f"{rows[-1]['retrains']:g}"
    lines = [
        "# Soak",
        "",
        f"{count} small retrains on one worker, each with two new votes. The store is pruned before each row.",
        f"Made by `SOAK_RETRAINS={count} SOAK_OUT=benchmarks/results/soak.md pytest -m slow "
        "tests/flows/serve/test_soak.py`.",
        "",
        "`worker` runs the flows, `stages` forks the stages, and `server` is Prefect's. CPU time is that of the "
        "runs, without the server; the wall time also depends on what else runs on the machine. The test fails if the "
        f"median of the last third of a column exceeds that of the first by more than {SLACK:g} and by this factor: "
        f"{', '.join(f'{name} {most:g}' for name, most in GROWTH.items())}.",
        "",
        circumstances_line("prefect", "torch"),
        "",
        f"| {' | '.join(rows[0])} |",
        f"|{'--:|' * len(rows[0])}",
        *(f"| {' | '.join(f'{value:.4g}' for value in row.values())} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def retrain(here: Served, place: Path, number: int) -> float:
    """Vote and retrain. Return how long the run took in seconds."""
    vote(place, number)
    run = here.start("retrain/soak")
    assert here.ended(run)["type"] == "COMPLETED", here.state_and_log(run)
    # The run's process ends some time after the run, and its CPU time counts only then.
    worker = psutil.Process(here.services()["gpu"])
    until(lambda: not worker.children())
    return float(here.get(f"flow_runs/{run}")["total_run_time"])


def soak(here: Served, place: Path, store: Path, temporary: Path, first: int) -> list[dict[str, float]]:
    """Retrain again and again. Return the rows of the table.

    Args:
        here: what `align up` has started.
        place: the feedback store.
        store: the artifact store.
        temporary: the folder for temporary files of all processes.
        first: number of the first votes.
    """
    rows: list[dict[str, float]] = []
    deadline = time.monotonic() + 60 * MINUTES
    while len(rows) < RETRAINS // PRUNED and time.monotonic() < deadline:
        before = cpu_seconds(here)
        done = PRUNED * len(rows)
        seconds = [retrain(here, place, first + done + more) for more in range(PRUNED)]
        used = (cpu_seconds(here) - before) / PRUNED
        row = {"CPU s per run": used, "wall s per run": median(seconds)}
        rows.append({"retrains": done + PRUNED, **measure(here, store, temporary), **row})
        if out := os.environ.get("SOAK_OUT"):
            Path(out).write_text(table(rows))
    return rows


def test_nothing_grows(write: Callable[..., Path], tmp_path: Path) -> None:
    folder, home, temporary = (tmp_path / name for name in ("workers", "home", "temporary"))
    for path in (folder, home, temporary):
        path.mkdir()
    store, place = tmp_path / "store", tmp_path / "feedback.db"
    step = {"batch_size": 8, "learning_rate": 1e-3}
    rules = {"win_rate_over_sft": None, "win_rate_over_production": None, "to_production": True}
    settings = {"optimizer": {"name": "kto", **step}, "gate": rules, "feedback": str(place)}
    with align_up(folder, home, TMPDIR=str(temporary)) as here:
        vote(place, 0)
        here.deploy(write(name="soak", **settings, retrain={"min_votes": 2, "start": "sft"}))
        retrain(here, place, 1)  # also makes the SFT model
        rows = soak(here, place, store, temporary, 2)
    check(rows)


def check(rows: Sequence[Mapping[str, float]]) -> None:
    third = len(rows) // 3
    assert third, "too few retrains"
    for name, most in GROWTH.items():
        first, last = (median(row[name] for row in part) for part in (rows[:third], rows[-third:]))
        assert last <= max(first * most, first + SLACK), (name, first, last)


@pytest.mark.parametrize("name", GROWTH)
def test_growth_is_found(name: str) -> None:
    """Each column at 20 for a worker with a leak of two per five retrains, out of 100."""
    flat = [dict.fromkeys(GROWTH, 20.0) for _ in range(20)]
    check(flat)
    with pytest.raises(AssertionError, match=name):
        check([{**row, name: 20.0 + 2 * number} for number, row in enumerate(flat)])
