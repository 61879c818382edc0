"""A Prefect server with workers, as `align up` starts them, and what a person does with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ALIGN = [sys.executable, "-P", "-c", "from alignment_flows.cli import main; main()"]
PREFECT = [sys.executable, "-P", "-m", "prefect", "--no-prompt"]
PATIENCE = 900.0
"""Seconds until a test gives up: far more than anything takes on a busy machine."""

FINAL = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}


@dataclass(frozen=True)
class Served:
    """A server, its workers' working directory, and its PREFECT_HOME."""

    url: str
    folder: Path
    home: Path

    def run(self, command: list[str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """A command as typed in the folder."""
        env = {**os.environ, "PREFECT_HOME": str(self.home), "PREFECT_API_URL": f"{self.url}/api"}
        words = [*command, *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, check=False, cwd=self.folder, env=env)

    def get(self, path: str) -> Any:
        return self._answer("GET", path)

    def post(self, path: str, **body: Any) -> Any:
        return self._answer("POST", path, json=body)

    def delete(self, path: str) -> None:
        self._answer("DELETE", path)

    def _answer(self, method: str, path: str, **request: Any) -> Any:
        """The server's answer; asked again where it says that its database is busy, as Prefect's own client does."""
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = httpx.request(method, f"{self.url}/api/{path}", timeout=PATIENCE, **request)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        assert answer.is_success, f"{method} {answer.url}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"deployments/name/{name}")
        return found

    def start(self, deployment: str, parameters: Mapping[str, Any] | None = None) -> str:
        """Run a deployment now; returns the flow run's id."""
        path = f"deployments/{self.deployment(deployment)['id']}/create_flow_run"
        return str(self.post(path, parameters=dict(parameters or {}), state={"type": "SCHEDULED"})["id"])

    def state(self, flow_run: str) -> dict[str, Any]:
        state: dict[str, Any] = self.get(f"flow_runs/{flow_run}")["state"]
        return state

    def ended(self, flow_run: str) -> dict[str, Any]:
        """Wait for the run's final state."""
        until(lambda: self.state(flow_run)["type"] in FINAL, lambda: f"{self.state(flow_run)}\n{self.log(flow_run)}")
        return self.state(flow_run)

    def log(self, flow_run: str) -> str:
        """What the run logged so far."""
        chosen = {"flow_run_id": {"any_": [flow_run]}}
        lines = self.post("logs/filter", logs=chosen, sort="TIMESTAMP_ASC", limit=200)
        return "\n".join(line["message"] for line in lines)

    def reports(self, flow_run: str) -> list[str]:
        """The markdown pages that the run left."""
        chosen = {"flow_run_id": {"any_": [flow_run]}, "type": {"any_": ["markdown"]}}
        return [page["data"] for page in self.post("artifacts/filter", artifacts=chosen, limit=200)]


def until(happened: Callable[[], object], otherwise: Callable[[], object] = lambda: "") -> None:
    """Wait until something has happened; fail with what `otherwise` says if it never does."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, f"it did not happen: {otherwise()}"
        time.sleep(0.2)
