"""A Prefect server with workers, as `align up` starts them, and what a person does with it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ALIGN = (sys.executable, "-P", "-c", "from alignment_flows.cli import main; main()")
PREFECT = (sys.executable, "-P", "-m", "prefect", "--no-prompt")
PATIENCE = 1800.0
"""Seconds until a test gives up: far more than anything takes on a busy machine."""

FINAL = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}


@dataclass(frozen=True)
class Served:
    """A server, its workers' working directory, its PREFECT_HOME, what else is in its people's environment, and the
    `align` that they use.
    """

    url: str
    folder: Path
    home: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    program: Sequence[str] = ALIGN

    def run(self, command: Sequence[str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """A command as typed in the folder, with PREFECT_API_URL set."""
        return self._typed(command, arguments, PREFECT_API_URL=f"{self.url}/api")

    def align(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """`align` as typed by someone who knows of no PREFECT_API_URL."""
        return self._typed(self.program, arguments)

    def begun(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """`align` as `align` types it, at work."""
        words, nowhere = [*self.program, *map(str, arguments)], subprocess.DEVNULL
        return subprocess.Popen(words, stdout=nowhere, stderr=nowhere, cwd=self.folder, env=self._environment())

    def _typed(
        self, command: Sequence[str], arguments: tuple[str | Path, ...], **more: str
    ) -> subprocess.CompletedProcess[str]:
        words, env = [*command, *map(str, arguments)], self._environment() | more
        return subprocess.run(words, capture_output=True, text=True, check=False, cwd=self.folder, env=env)

    def _environment(self) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
        return env | {"PREFECT_HOME": str(self.home), **self.variables}

    def get(self, path: str) -> Any:
        return self._answer("GET", path)

    def post(self, path: str, rows: list[Any] | None = None, **body: Any) -> Any:
        return self._answer("POST", path, json=body if rows is None else rows)

    def put(self, path: str, **body: Any) -> None:
        self._answer("PUT", path, json=body)

    def patch(self, path: str, **body: Any) -> None:
        self._answer("PATCH", path, json=body)

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

    def deploy(self, config: Path) -> str:
        """Register settings as a deployment of the pipeline; returns its name."""
        done = self.run(self.program, "deploy", config)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[0]

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"deployments/name/{name}")
        return found

    def automation(self, name: str, deployment: str | None = None) -> dict[str, Any]:
        """The one automation of this name, which runs this deployment."""
        found: list[dict[str, Any]] = self.post("automations/filter", automations={"name": {"any_": [name]}})
        if deployment is not None:  # one of a deployment that was deleted may be left over
            identity = self.deployment(deployment)["id"]
            found = [rule for rule in found if identity in [action.get("deployment_id") for action in rule["actions"]]]
        (only,) = found
        return only

    def start(self, deployment: str, parameters: Mapping[str, Any] | None = None, **more: Any) -> str:
        """Run a deployment now; returns the flow run's id."""
        path = f"deployments/{self.deployment(deployment)['id']}/create_flow_run"
        return str(self.post(path, parameters=dict(parameters or {}), state={"type": "SCHEDULED"}, **more)["id"])

    def runs_of(self, deployment: str) -> list[dict[str, Any]]:
        """Every run of a deployment, whoever started it."""
        chosen = {"id": {"any_": [self.deployment(deployment)["id"]]}}
        runs: list[dict[str, Any]] = self.post("flow_runs/filter", deployments=chosen)
        return runs

    def state(self, flow_run: str) -> dict[str, Any]:
        state: dict[str, Any] = self.get(f"flow_runs/{flow_run}")["state"]
        return state

    def states(self, flow_run: str) -> list[dict[str, Any]]:
        """Every state that the run was in, the oldest first."""
        states = self.get(f"flow_run_states/?flow_run_id={flow_run}")
        return sorted(states, key=lambda state: str(state["timestamp"]))

    def ended(self, flow_run: str) -> dict[str, Any]:
        """Wait for the run's final state."""
        until(lambda: self.state(flow_run)["type"] in FINAL, lambda: self.told(flow_run))
        return self.state(flow_run)

    def told(self, flow_run: str) -> str:
        """State and log of a run, for somebody who wonders what became of it."""
        return f"{self.state(flow_run)}\n{self.log(flow_run)}"

    def tasks(self, flow_run: str) -> dict[str, dict[str, Any]]:
        """The newest task run of each stage, by the beginning of its label."""
        chosen = {"id": {"any_": [flow_run]}}
        tasks = self.post("task_runs/filter", flow_runs=chosen, sort="EXPECTED_START_TIME_ASC", limit=200)
        return {task["name"].partition(" · ")[0]: task for task in tasks}

    def services(self) -> dict[str, int]:
        """Process ids of what `align up` started, by name."""
        record = json.loads((self.home / "align-up.json").read_text())
        return {service["name"]: service["pid"] for service in record["services"]}

    def log(self, flow_run: str, **chosen: Any) -> str:
        """What the run logged so far, all of it or what is `chosen`."""
        chosen = {"flow_run_id": {"any_": [flow_run]}, **chosen}
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


def processes_of(flow_run: str) -> list[int]:
    """Every process that bears the run's mark: its own, its stage's, and whatever those started."""
    return processes_with("PREFECT__FLOW_RUN_ID", flow_run)


def processes_with(variable: str, value: str) -> list[int]:
    """Every process that has this in its environment."""
    mark = f"{variable}={value}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def alive(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2]
    except FileNotFoundError:
        return False


def engine_of(flow_run: str) -> int:
    """The flow run's own process."""
    (found,) = [
        process
        for process in processes_of(flow_run)
        if b"prefect.engine" in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    ]
    return found


def kill(*processes: int) -> None:
    """As the machine does it: without a word."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@contextmanager
def align_up(folder: Path, home: Path, program: Sequence[str] = ALIGN, **variables: str) -> Iterator[Served]:
    """What `align up` starts in a folder, with these variables in its environment; `align down` ends it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    here = Served(f"http://127.0.0.1:{port}", folder, home, variables, program)
    started = here.align("up", "--port", str(port))
    try:
        assert started.returncode == 0, started.stderr
        assert f"{here.url}/v2/deployments" in started.stdout
        yield here
    finally:
        ended = here.align("down")
    assert ended.returncode == 0, ended.stderr
    names = ended.stdout.removeprefix("ended: ").strip().split(", ")
    # The workers' order is that of their starts, and a test may have killed one.
    assert (names[0], {*names[1:]}) == ("server", {"gpu", "cpu"}), ended.stdout
    assert here.align("down").stdout == "nothing was running\n"
