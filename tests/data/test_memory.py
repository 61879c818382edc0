"""Memory does not grow with the file: ten times the rows, a process each, nearly the same peak."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "ingest_memory.py"


@pytest.mark.slow
def test_ten_times_the_rows_take_nearly_the_same_memory(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("ingest_memory", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    found = []
    for megabytes in (2, 20):
        path = tmp_path / f"{megabytes}.jsonl"
        benchmark.generate(path, megabytes * 10**6, prompt_words=5, answer_words=4)
        command = [sys.executable, str(BENCHMARK), "--measure", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    small, large = found
    assert large["rows"] > 100_000
    assert large["rows"] > 9.5 * small["rows"]
    # Held in memory, what is known of each row and its sorting would be 60 MB.
    assert large["anonymous_mb_above_floor"] - small["anonymous_mb_above_floor"] < 25
    assert large["resident_mb_above_floor"] < 300
