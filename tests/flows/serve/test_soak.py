"""Many small retrains on one worker: memory, handles, files, disk after `prune` and the time of a run do not grow.

SOAK_RETRAINS is their number (default 6), and SOAK_OUT a file for the table:

    SOAK_RETRAINS=100 SOAK_OUT=benchmarks/results/soak.md pytest -m slow tests/flows/serve/test_soak.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import pytest
from report import circumstances
from served import Served, align_up

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.prune import prune
from alignment_core.feedback import Rater, open_feedback

pytestmark = [pytest.mark.slow, pytest.mark.timeout(24 * 3600)]

RETRAINS = int(os.environ.get("SOAK_RETRAINS", "6"))
PAGE, MB = os.sysconf("SC_PAGE_SIZE"), 2**20
GROWTH = {
    "worker MB": 1.1,
    "server MB": 1.5,  # its caches fill
    "worker handles": 1.1,
    "server handles": 1.2,
    "temporary files": 1.0,
    "store files": 1.05,
    "store MB": 1.1,  # the votes grow
    "seconds": 1.5,  # other programs may run
}
"""By how much the median of the last third may exceed that of the first."""


def memory(process: int) -> float:
    """Return the resident memory of a process in MiB."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE / MB


def handles(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/fd"))


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def vote(place: Path, number: int) -> None:
    """Vote on two new responses."""
    with open_feedback(str(place)) as store:
        for up in (True, False):
            prompt = ({"role": "user", "content": f"Tell me something about the number {number}."},)
            store.thumb(Rater("Ann"), store.add_response(prompt, f"I {'like' if up else 'hate'} {number}.", "m"), up)


def measure(here: Served, run: str, store: Path, temporary: Path) -> dict[str, float]:
    """Prune the store after a run, and return what the run took and left."""
    prune(ArtifactStore(store))
    services = here.services()
    left = files(store)
    return {
        "worker MB": memory(services["gpu"]),
        "server MB": memory(services["server"]),
        "worker handles": handles(services["gpu"]),
        "server handles": handles(services["server"]),
        "temporary files": len(files(temporary)),
        "store files": len(left),
        "store MB": sum(path.stat().st_size for path in left) / MB,
        "seconds": here.get(f"flow_runs/{run}")["total_run_time"],
    }


def table(rows: Sequence[Mapping[str, float]]) -> str:
    """Return the measurements as Markdown."""
    where = circumstances("prefect", "torch")
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    command = (
        f"SOAK_RETRAINS={len(rows)} SOAK_OUT=benchmarks/results/soak.md pytest -m slow tests/flows/serve/test_soak.py"
    )
    lines = [
        "# Soak",
        "",
        f"{len(rows)} small retrains on one worker, each with two new votes, and pruning after each. "
        f"Made by `{command}`.",
        "",
        f"{where['date']}, {where['machine']}, {versions}.",
        "",
        f"| retrain | {' | '.join(rows[0])} |",
        f"|--:|{'--:|' * len(rows[0])}",
        *(
            f"| {number} | {' | '.join(f'{value:.5g}' for value in row.values())} |"
            for number, row in enumerate(rows, 1)
        ),
    ]
    return "\n".join(lines) + "\n"


def test_nothing_grows(write: Callable[..., Path], tmp_path: Path) -> None:
    folder, home, temporary = (tmp_path / name for name in ("workers", "home", "temporary"))
    for path in (folder, home, temporary):
        path.mkdir()
    store, place = tmp_path / "store", tmp_path / "feedback.db"
    step = {"batch_size": 8, "learning_rate": 1e-3}
    rules = {"win_rate_over_sft": None, "win_rate_over_production": None, "to_production": True}
    settings = {"optimizer": {"name": "kto", **step}, "gate": rules, "feedback": str(place)}
    rows: list[dict[str, float]] = []
    with align_up(folder, home, TMPDIR=str(temporary)) as here:
        vote(place, 0)
        here.deploy(write(name="soak", **settings, retrain={"min_votes": 2, "start": "sft"}))
        for number in range(1, RETRAINS + 1):
            vote(place, number)
            run = here.start("retrain/soak")
            assert here.ended(run)["type"] == "COMPLETED", here.state_and_log(run)
            rows.append(measure(here, run, store, temporary))
            if out := os.environ.get("SOAK_OUT"):
                Path(out).write_text(table(rows))
    third = RETRAINS // 3
    for name, most in GROWTH.items():
        # The first run also makes the SFT model.
        first, last = (median(row[name] for row in part) for part in (rows[1 : 1 + third], rows[-third:]))
        assert last <= first * most + 1, (name, first, last)
