"""Measure submitted runs while the machine is busy: `align up`, two spinning processes, and 100 runs sent to one pool.

    python benchmarks/submits.py [--runs 100] [--database sqlite] [--out benchmarks/results/submits.json]

A submit is what a click does: one request that creates a flow run. The runs start at once, one at a time; without a
network they fail when they look for their model, which is work for the server and the worker all the same.
`--database sqlite` shows what the same server does on SQLite.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from report import circumstances, report

ALIGN = (sys.executable, "-P", "-c", "from alignment_flows.cli.app import main; main()")
SPIN = (sys.executable, "-c", "while True: pass")
DEPLOYMENT = "align/gpu-12gb"
PORT = 4311


def submit(client: httpx.Client, deployment: str) -> tuple[bool, float]:
    """Return whether the server created a run, and the seconds that it took."""
    started = time.perf_counter()
    try:
        answer = client.post(f"/deployments/{deployment}/create_flow_run", json={"state": {"type": "SCHEDULED"}})
        return answer.is_success, time.perf_counter() - started
    except httpx.HTTPError:
        return False, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "PREFECT_HOME": home, "HF_HUB_OFFLINE": "1"}
        environment.pop("PREFECT_API_URL", None)
        if arguments.database == "sqlite":
            environment["PREFECT_API_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{home}/prefect.db"
        started = time.perf_counter()
        subprocess.run([*ALIGN, "up", "--port", str(PORT)], env=environment, cwd=home, check=True, capture_output=True)
        up = time.perf_counter() - started
        spinning = [subprocess.Popen(SPIN) for _ in range(2)]
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{PORT}/api", timeout=60) as client:
                deployment = client.get(f"/deployments/name/{DEPLOYMENT}").raise_for_status().json()["id"]
                submits = [submit(client, deployment) for _ in range(arguments.runs)]
        finally:
            for process in spinning:
                process.kill()
            subprocess.run([*ALIGN, "down"], env=environment, cwd=home, check=True, capture_output=True)
        logs = "".join(log.read_text(errors="replace") for log in (Path(home) / "align").glob("*.log"))
    seconds = sorted(taken for _, taken in submits)
    result = {
        "what": f"{arguments.runs} runs submitted to a busy machine, with {arguments.database}",
        **circumstances("prefect"),
        "failed": sum(not created for created, _ in submits),
        "seconds_median": round(statistics.median(seconds), 2),
        "seconds_95_percent": round(seconds[int(0.95 * len(seconds))], 2),
        "seconds_most": round(seconds[-1], 2),
        "lines_with_locked": logs.count("locked"),
        "seconds_of_align_up": round(up, 1),
    }
    report(result, arguments.out)


if __name__ == "__main__":
    main()
