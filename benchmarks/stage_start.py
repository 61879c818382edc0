"""Measure how long a stage's process takes to start, forked from a fork server and spawned, and compare the results.

    python benchmarks/stage_start.py CONFIG [--runs 5] [--out benchmarks/results/stage-start.json]

Times processes that import the libraries, read an empty request, fail and exit. Then it builds ingestion and SFT of
CONFIG in both ways, each in a new store, and compares every file of the artifacts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from report import circumstances, report

from alignment_core.config_file import load_config
from alignment_core.execution.build import build
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.processes import start
from alignment_core.processes.fork_client import stop_server
from alignment_core.progress import Silent
from alignment_core.registry import load_registry

MODULE = "alignment_core.forecast.process"
"""It imports what a stage with a model imports."""


@contextmanager
def spawning() -> Iterator[None]:
    """Start new Python processes inside, as on a system without fork."""
    forking = start.fork_module
    start.fork_module = lambda *_, **__: None  # type: ignore[assignment]
    try:
        yield
    finally:
        start.fork_module = forking


def seconds_to_start() -> float:
    """Return the seconds from the start of a process with all libraries until it has failed on its empty request."""
    began = time.perf_counter()
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as nothing:
        files = {"stdin": nothing.fileno(), "stdout": nothing.fileno(), "stderr": nothing.fileno()}
        child = start.start_module(MODULE, **files, passed=(writing,))
    os.close(writing)
    with open(reading, "rb") as events:
        events.read()
    child.wait()
    return time.perf_counter() - began


def build_stages(config: Path, store: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Build ingestion and SFT. Return the digests of their files, and their wall seconds."""
    plan = plan_pipeline(load_config(config, [f"store={store}"]), load_registry())
    digests, seconds = {}, {}
    for call in filter(None, (plan.ingest, plan.sft)):
        built = build(call, Silent())
        files = built.artifact.manifest().files
        digests |= {f"{call.stage}/{name}": file.sha256 for name, file in files.items()}
        seconds[call.stage] = round(built.seconds, 2)
    return digests, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first = seconds_to_start()
        forked = [seconds_to_start() for _ in range(arguments.runs)]
        forked_files, forked_seconds = build_stages(arguments.config, Path(folder) / "forked")
        stop_server()
        with spawning():
            spawned = [seconds_to_start() for _ in range(arguments.runs)]
            spawned_files, spawned_seconds = build_stages(arguments.config, Path(folder) / "spawned")
    different = [name for name, digest in forked_files.items() if spawned_files[name] != digest]
    result = {
        "what": "wall seconds of a process that imports the libraries and fails on an empty request, and of stages",
        "config": str(arguments.config),
        **circumstances("torch"),
        "runs": arguments.runs,
        "first_process_seconds": round(first, 2),
        "forked_process_seconds": round(statistics.median(forked), 2),
        "spawned_process_seconds": round(statistics.median(spawned), 2),
        "forked_stages_seconds": forked_seconds,
        "spawned_stages_seconds": spawned_seconds,
        "files_compared": len(forked_files),
        "files_that_differ": different,
    }
    report(result, arguments.out)


if __name__ == "__main__":
    main()
