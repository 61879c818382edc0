"""What Prefect adds to a run that finds everything in the store: `align run` against a running server, and without.

    python benchmarks/prefect_overhead.py CONFIG [--runs 5] [--out benchmarks/results/prefect-overhead.json]

The first, unmeasured run builds whatever the store lacks. Then both ways take turns, each in a process of its own.
Processor time is given beside the wall's, because a busy machine does not make it longer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

WITH_PREFECT = "from alignment_flows.cli import main; main()"
WITHOUT = """
import sys
from pathlib import Path
from alignment_core.config_file import load_config
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_core.stages.build import build
from alignment_core.stages.plan import make_plan

plan = make_plan(load_config(Path(sys.argv[1])), load_registry())
assert all(build(call, Silent()).cached for call in plan.calls().values())
"""


def measure(*command: str) -> tuple[float, float]:
    """Wall and processor seconds of one process with all that it starts."""
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
        from alignment_flows.local import quieten_prefect
        from alignment_flows.server import start_temporary_server

        quieten_prefect()
        os.environ["PREFECT_API_URL"] = start_temporary_server()
        measure(WITH_PREFECT, "run", arguments.config)
        measured: dict[str, list[tuple[float, float]]] = {"with Prefect": [], "without": []}
        for _ in range(arguments.runs):
            measured["with Prefect"].append(measure(WITH_PREFECT, "run", arguments.config))
            measured["without"].append(measure(WITHOUT, arguments.config))
    result = {
        "what": "a run that finds every stage in the store",
        "config": arguments.config,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}",
        "versions": {"python": platform.python_version(), "prefect": version("prefect")},
        "runs": arguments.runs,
        **{name: medians(runs) for name, runs in measured.items()},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
