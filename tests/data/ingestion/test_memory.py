"""Ingestion memory does not grow with the file: ten times the rows, in a new process, have nearly the same peak."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import load_script

BENCHMARK = Path(__file__).resolve().parents[3] / "benchmarks" / "ingest_memory.py"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path) -> None:
    benchmark = load_script(BENCHMARK)
    results = []
    for megabytes in (2, 20):
        path = tmp_path / f"{megabytes}.jsonl"
        benchmark.generate(path, megabytes * 10**6, prompt_words=5, answer_words=4)
        command = [sys.executable, str(BENCHMARK), "--measure", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    small, large = results
    assert large["rows"] > 100_000
    assert large["rows"] > 9.5 * small["rows"]
    # Held in memory, the data per row and for sorting would be 60 MB.
    assert large["anonymous_mb_above_floor"] - small["anonymous_mb_above_floor"] < 25
    assert large["resident_mb_above_floor"] < 300
