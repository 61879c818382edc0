"""Measure what one run adds: rows and bytes in Prefect's database, artifacts and bytes in the store.

    python benchmarks/retrain_growth.py CONFIG [--runs 3] [--cached 3] [--set A.B=VALUE]
        [--out benchmarks/results/retrain-growth.json]

A Prefect server with an empty SQLite database is started. The first run builds everything. Each of the next `--runs`
has another seed, so that it builds every stage except the data, as a retrain does. Each of the last `--cached` finds
every stage in the store. Bytes of the database are the pages in use, without those that SQLite keeps free.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from report import circumstances, report

ALIGN = (sys.executable, "-P", "-c", "from alignment_flows.cli.app import main; main()")
SERVER = (sys.executable, "-P", "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port")
PORT = 4317
TABLES = ("flow_run", "task_run", "flow_run_state", "task_run_state", "log", "artifact", "events", "event_resources")
SETTLED_SECONDS = 6
"""Time for the server to write the events and logs that it has received."""


@contextlib.contextmanager
def server(home: Path) -> Iterator[Path]:
    """Run a Prefect server, and yield the file of its database."""
    os.environ |= {"PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{PORT}/api"}
    with (
        (home / "server.log").open("w") as log,
        subprocess.Popen([*SERVER, str(PORT)], stdout=log, stderr=log) as running,
    ):
        try:
            for _ in range(600):
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"{os.environ['PREFECT_API_URL']}/health").is_success:
                        break
                time.sleep(0.5)
            yield home / "prefect.db"
        finally:
            running.terminate()


def database(file: Path) -> dict[str, int]:
    """Return the rows of each table, and the bytes in use."""
    time.sleep(SETTLED_SECONDS)
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=60)) as connection:
        counts = {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES}
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
    return counts | {"bytes": (pages - free) * size}


def stored(store: Path) -> dict[str, int]:
    """Return the number of artifacts and the bytes of each kind."""
    found: dict[str, int] = {"artifacts": 0}
    for manifest in store.glob("*/*/manifest.json"):
        kind = manifest.parent.parent.name
        found["artifacts"] += 1
        size = sum(file.stat().st_size for file in manifest.parent.rglob("*") if file.is_file())
        found[f"{kind} bytes"] = found.get(f"{kind} bytes", 0) + size
    return found


def per_run(before: Mapping[str, int], after: Mapping[str, int], runs: int) -> dict[str, float]:
    return {name: round((value - before.get(name, 0)) / runs, 1) for name, value in after.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cached", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="settings to change, as for `align run`")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="align-growth-") as name, server(Path(name)) as file:
        store, seconds = Path(name) / "store", list[int]()

        def run(seed: int) -> None:
            changes = [f"--set={change}" for change in (*arguments.set, f"store={store}", f"seed={seed}")]
            started = time.monotonic()
            subprocess.run([*ALIGN, "run", arguments.config, *changes], check=True, stdout=subprocess.DEVNULL)
            seconds.append(round(time.monotonic() - started))

        run(0)
        first = database(file), stored(store)
        for seed in range(1, 1 + arguments.runs):
            run(seed)
        retrained = database(file), stored(store)
        for _ in range(arguments.cached):
            run(arguments.runs)
        cached = database(file), stored(store)
    result: dict[str, Any] = {
        "what": "what one run adds to Prefect's database and to the store",
        "config": arguments.config,
        "changes": arguments.set,
        **circumstances("prefect"),
        "seconds of the runs": seconds,
        "a retrain": {
            "database": per_run(first[0], retrained[0], arguments.runs),
            "store": per_run(first[1], retrained[1], arguments.runs),
        },
        "a run with nothing to build": {
            "database": per_run(retrained[0], cached[0], arguments.cached),
            "store": per_run(retrained[1], cached[1], arguments.cached),
        },
    }
    report(result, arguments.out)


if __name__ == "__main__":
    main()
