"""Measure Prefect's overhead for a fully cached run: `align run` with a running server, and the same without Prefect.

    python benchmarks/prefect_overhead.py CONFIG [--runs 5] [--out benchmarks/results/prefect-overhead.json]

The first run is not measured and builds everything that is missing from the store. Then both variants alternate, each
in a separate process. CPU time is reported next to wall time, because other load on the machine does not increase it.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import circumstances, report

WITH_PREFECT = "from alignment_flows.cli.app import main; main()"
WITHOUT = """
import sys
from pathlib import Path
from alignment_core.config_file import load_config
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_core.execution.build import build
from alignment_core.planning.pipeline import plan_pipeline

plan = plan_pipeline(load_config(Path(sys.argv[1])), load_registry())
assert all(build(call, Silent()).cached for call in plan.calls().values())
"""


def measure(*command: str) -> tuple[float, float]:
    """Return wall and CPU seconds of one process and its children."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-P", "-c", *command], check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def medians(runs: list[tuple[float, float]]) -> dict[str, float]:
    wall, processor = zip(*runs, strict=True)
    return {
        "wall_seconds": round(statistics.median(wall), 2),
        "wall_seconds_least": round(min(wall), 2),
        "processor_seconds": round(statistics.median(processor), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["PREFECT_HOME"] = home
        from alignment_flows.serve.local.server import configure_prefect
        from alignment_flows.serve.temporary_server import start_temporary_server

        configure_prefect()
        os.environ["PREFECT_API_URL"] = start_temporary_server()
        measure(WITH_PREFECT, "run", arguments.config)
        measured: dict[str, list[tuple[float, float]]] = {"with Prefect": [], "without": []}
        for _ in range(arguments.runs):
            measured["with Prefect"].append(measure(WITH_PREFECT, "run", arguments.config))
            measured["without"].append(measure(WITHOUT, arguments.config))
    result = {
        "what": "a run that finds every stage in the store",
        "config": arguments.config,
        **circumstances("prefect"),
        "runs": arguments.runs,
        **{name: medians(runs) for name, runs in measured.items()},
    }
    report(result, arguments.out)


if __name__ == "__main__":
    main()
