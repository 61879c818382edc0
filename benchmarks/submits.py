"""Measure submitted runs while the machine is busy: `align up`, two spinning processes, and 100 runs sent to one pool.

    python benchmarks/submits.py [--runs 100] [--changes 200] [--database sqlite] [--out results/submits.json]

A submit is what a click does: one request that creates a flow run. The runs start at once, one at a time; without a
network they fail when they look for their model, which is work for the server and the worker all the same. Then follow
changes: runs that are planned and cancelled, schedules that are added, and automations and deployments that are paused.
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
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from report import circumstances, report

ALIGN = (sys.executable, "-P", "-c", "from alignment_flows.cli.app import main; main()")
SPIN = (sys.executable, "-c", "while True: pass")
DEPLOYMENT = "align/gpu-12gb-all"
PORT = 4311


def send(client: httpx.Client, method: str, path: str, **body: Any) -> tuple[bool, float, Any]:
    """Send one request. Return whether the server accepted it, the seconds that it took, and its answer."""
    started = time.perf_counter()
    try:
        answer = client.request(method, path, json=body)
        content = answer.json() if answer.content else None
        return answer.is_success, time.perf_counter() - started, content
    except httpx.HTTPError:
        return False, time.perf_counter() - started, None


def change(client: httpx.Client, deployment: str, count: int) -> Iterator[tuple[bool, float, Any]]:
    """Change schedules, runs, deployments and automations, one request after the other."""
    tomorrow = {"type": "SCHEDULED", "state_details": {"scheduled_time": f"{datetime.now(UTC) + timedelta(days=1)}"}}
    rule = client.post("/automations/filter", json={}).raise_for_status().json()[0]["id"]
    for number in range(count // 5):
        schedule = {"schedule": {"interval": 3600 + number}, "active": False, "slug": f"bench-{number}"}
        started = time.perf_counter()
        added = client.post(f"/deployments/{deployment}/schedules", json=[schedule])
        yield added.is_success, time.perf_counter() - started, None
        planned = send(client, "POST", f"/deployments/{deployment}/create_flow_run", state=tomorrow)
        yield planned
        run = (planned[2] or {}).get("id")
        yield send(client, "POST", f"/flow_runs/{run}/set_state", state={"type": "CANCELLED"}, force=True)
        yield send(client, "PATCH", f"/deployments/{deployment}", paused=number % 2 == 0)
        yield send(client, "PATCH", f"/automations/{rule}", enabled=number % 2 == 0)


def times(requests: Sequence[tuple[bool, float, Any]]) -> dict[str, Any]:
    """Return how many requests failed, and how long they took."""
    seconds = sorted(taken for _, taken, _ in requests)
    return {
        "failed": sum(not accepted for accepted, _, _ in requests),
        "seconds_median": round(statistics.median(seconds), 2),
        "seconds_95_percent": round(seconds[int(0.95 * len(seconds))], 2),
        "seconds_most": round(seconds[-1], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--changes", type=int, default=200)
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
                path = f"/deployments/{deployment}/create_flow_run"
                submits = [send(client, "POST", path, state={"type": "SCHEDULED"}) for _ in range(arguments.runs)]
                changes = list(change(client, deployment, arguments.changes))
        finally:
            for process in spinning:
                process.kill()
            subprocess.run([*ALIGN, "down"], env=environment, cwd=home, check=True, capture_output=True)
        logs = "".join(log.read_text(errors="replace") for log in (Path(home) / "align").glob("*.log"))
    result = {
        "what": f"runs submitted to a busy machine, and other changes, with {arguments.database}",
        **circumstances("prefect"),
        "submits": {"count": len(submits), **times(submits)},
        "changes": {"count": len(changes), **times(changes)},
        "lines_with_locked": logs.count("locked"),
        "seconds_of_align_up": round(up, 1),
    }
    report(result, arguments.out)


if __name__ == "__main__":
    main()
