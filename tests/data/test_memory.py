"""Memory does not grow with the file: four times the rows, a process each, nearly the same peak."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "ingest_memory.py"


@pytest.mark.slow
def test_four_times_the_file_takes_nearly_the_same_memory(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("ingest_memory", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    found = []
    for megabytes in (10, 40):
        path = tmp_path / f"{megabytes}.jsonl"
        benchmark.generate(path, megabytes * 10**6)
        command = [sys.executable, str(BENCHMARK), "--measure", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    small, large = found
    assert large["rows"] > 3.9 * small["rows"]
    # 30 MB more to read: a reader that holds the file, or a row of Python objects, would hold several times that.
    assert large["anonymous_mb_above_floor"] - small["anonymous_mb_above_floor"] < 25
    assert large["resident_mb_above_floor"] < 300
