"""A Prefect server with workers, as `align up` starts them, and the actions of its users."""

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

ALIGN = (sys.executable, "-P", "-c", "from alignment_flows.cli.app import main; main()")
PREFECT = (sys.executable, "-P", "-m", "prefect", "--no-prompt")
PATIENCE = 1800.0
"""Seconds until a test gives up: far longer than anything takes on a busy machine."""

FINAL = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}


@dataclass(frozen=True)
class Served:
    """A Prefect server started by `align up`.

    Attributes:
        url: the server's address.
        folder: the workers' working directory.
        home: its PREFECT_HOME.
        variables: other environment variables of its users.
        program: the `align` command that they use.
    """

    url: str
    folder: Path
    home: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    program: Sequence[str] = ALIGN

    def run(self, command: Sequence[str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder with PREFECT_API_URL set."""
        return self._typed(command, arguments, PREFECT_API_URL=f"{self.url}/api")

    def align(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run `align` in the folder without PREFECT_API_URL."""
        return self._typed(self.program, arguments)

    def start_align(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """Start `align` in the folder without waiting for it to end."""
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
        """Return the server's response. Retry while its database is busy, as Prefect's client does."""
        deadline = time.monotonic() + PATIENCE
        while True:
            # Loading the certificates of https would take 20 ms of each request.
            answer = httpx.request(method, f"{self.url}/api/{path}", timeout=PATIENCE, verify=False, **request)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        assert answer.is_success, f"{method} {answer.url}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def deploy(self, config: Path) -> str:
        """Register a config file as a deployment of the pipeline. Return its name."""
        done = self.run(self.program, "deploy", config)
        assert done.returncode == 0, done.stderr
        return done.stdout.partition(":")[0]

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"deployments/name/{name}")
        return found

    def automation(self, name: str, deployment: str | None = None) -> dict[str, Any]:
        """Return the only automation of this name that runs this deployment."""
        found: list[dict[str, Any]] = self.post("automations/filter", automations={"name": {"any_": [name]}})
        if deployment is not None:  # an automation of a deleted deployment may be left over
            identity = self.deployment(deployment)["id"]
            found = [rule for rule in found if identity in [action.get("deployment_id") for action in rule["actions"]]]
        (only,) = found
        return only

    def start(self, deployment: str, parameters: Mapping[str, Any] | None = None, **more: Any) -> str:
        """Run a deployment now. Return the flow run's id."""
        path = f"deployments/{self.deployment(deployment)['id']}/create_flow_run"
        return str(self.post(path, parameters=dict(parameters or {}), state={"type": "SCHEDULED"}, **more)["id"])

    def runs_of(self, deployment: str) -> list[dict[str, Any]]:
        """Return every run of a deployment, whoever started it."""
        chosen = {"id": {"any_": [self.deployment(deployment)["id"]]}}
        runs: list[dict[str, Any]] = self.post("flow_runs/filter", deployments=chosen)
        return runs

    def state(self, flow_run: str) -> dict[str, Any]:
        state: dict[str, Any] = self.get(f"flow_runs/{flow_run}")["state"]
        return state

    def states(self, flow_run: str) -> list[dict[str, Any]]:
        """Return every state of the run, the oldest first."""
        states = self.get(f"flow_run_states/?flow_run_id={flow_run}")
        return sorted(states, key=lambda state: str(state["timestamp"]))

    def ended(self, flow_run: str) -> dict[str, Any]:
        """Wait for the run's final state and return it."""
        until(lambda: self.state(flow_run)["type"] in FINAL, lambda: self.state_and_log(flow_run))
        return self.state(flow_run)

    def state_and_log(self, flow_run: str) -> str:
        """Return the state and log of a run, for assertion messages."""
        return f"{self.state(flow_run)}\n{self.log(flow_run)}"

    def tasks(self, flow_run: str) -> dict[str, dict[str, Any]]:
        """Return the newest task run of each stage, by the first part of its label."""
        chosen = {"id": {"any_": [flow_run]}}
        tasks = self.post("task_runs/filter", flow_runs=chosen, sort="EXPECTED_START_TIME_ASC", limit=200)
        return {task["name"].partition(" · ")[0]: task for task in tasks}

    def services(self) -> dict[str, int]:
        """Return the process ids of the services that `align up` started, by name."""
        record = json.loads((self.home / "align-up.json").read_text())
        return {service["name"]: service["pid"] for service in record["services"]}

    def log(self, flow_run: str, **chosen: Any) -> str:
        """Return the run's log so far, optionally filtered by `chosen`."""
        chosen = {"flow_run_id": {"any_": [flow_run]}, **chosen}
        lines = self.post("logs/filter", logs=chosen, sort="TIMESTAMP_ASC", limit=200)
        return "\n".join(line["message"] for line in lines)

    def reports(self, flow_run: str) -> list[str]:
        """Return the run's Markdown artifacts."""
        chosen = {"flow_run_id": {"any_": [flow_run]}, "type": {"any_": ["markdown"]}}
        return [page["data"] for page in self.post("artifacts/filter", artifacts=chosen, limit=200)]


def until(happened: Callable[[], object], otherwise: Callable[[], object] = lambda: "") -> None:
    """Wait until `happened` returns true. Fail with the text of `otherwise` if it never does."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, f"timed out: {otherwise()}"
        time.sleep(0.2)


def processes_of(flow_run: str) -> list[int]:
    """Return every process of the run: its own, its stage's, and all processes they started."""
    return processes_with("PREFECT__FLOW_RUN_ID", flow_run)


def processes_with(variable: str, value: str) -> list[int]:
    """Return every process with this environment variable."""
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
    """Return the flow run's own process."""
    (found,) = [
        process
        for process in processes_of(flow_run)
        if b"prefect.engine" in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    ]
    return found


def kill(*processes: int) -> None:
    """Send SIGKILL to the processes."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@contextmanager
def align_up(folder: Path, home: Path, program: Sequence[str] = ALIGN, **variables: str) -> Iterator[Served]:
    """Run `align up` in a folder, with these environment variables, and `align down` at the end."""
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
    names = ended.stdout.removeprefix("stopped: ").strip().split(", ")
    # The workers are listed in order of their starts, and a test may have killed one.
    database = set() if "PREFECT_API_DATABASE_CONNECTION_URL" in variables else {"database"}
    assert (names[0], {*names[1:]}) == ("server", {"stages", "gpu", "cpu"} | database), ended.stdout
    assert here.align("down").stdout == "nothing was running\n"
