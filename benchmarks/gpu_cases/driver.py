"""Start cases one after the other, each in a process of its own with a time limit, and write down their results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignment_core.processes.start import ENVIRONMENT
from gpu_cases.catalogue import Case
from gpu_cases.needs import ROOT
from gpu_cases.results_file import ResultsFile

PROBE_SECONDS = 300
LAST_CHARACTERS = 1500
"""How much of the output of a process that died is kept in its line. All of it is in `logs/`."""


@dataclass(frozen=True)
class Machine:
    """What a first process found: the device, the packages that are missing, and the versions of the others."""

    device: str | None
    missing: list[str]
    torch: str | None
    versions: dict[str, str]


class ProcessFailed(Exception):
    """A process ended without a result. The message says how."""


class OutOfTime(Exception):
    """A process did not end within its time."""


def probe(logs: Path) -> Machine:
    """Return what the machine has. This process must not touch the card, whose memory is measured."""
    return Machine(**_run("--probe", PROBE_SECONDS, logs / "probe.log"))


def run_cases(results: ResultsFile, cases: Sequence[Case], machine: Machine, minutes: float | None) -> tuple[int, int]:
    """Run these cases. Return how many failed, and how many were left because the time was over."""
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    failed, left = 0, []
    for number, case in enumerate(cases, 1):
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining < case.expected:
            left.append(case)
            continue
        began = time.monotonic()
        line = _line(results, case, machine, remaining)
        if line is None:
            left.append(case)
            continue
        results.append(line | {"wall_seconds": round(time.monotonic() - began, 1)})
        failed += line["ok"] is False
        state = {True: "ok", False: "FAILED", None: "skipped"}[line["ok"]]
        print(f"[{number}/{len(cases)}] {case.name}: {state}, {time.monotonic() - began:.0f} s", flush=True)
        if line["error"]:
            print(f"    {line['error'].strip().splitlines()[0][:300]}", flush=True)
    if left:
        print(f"no time left for {len(left)} cases: {' '.join(case.name for case in left)}", flush=True)
    return failed, len(left)


def _line(results: ResultsFile, case: Case, machine: Machine, remaining: float | None) -> dict[str, Any] | None:
    """Run a case and return its line; None if only the remaining time, not its own limit, ended it."""
    limit = case.limit if remaining is None else min(case.limit, remaining)
    log = results.folder / "logs" / f"{case.name.replace('/', '-')}.log"
    try:
        return _run(json.dumps(asdict(case)), limit, log)
    except OutOfTime:
        if limit < case.limit:
            return None
        error = f"not done after {case.limit:g} s"
    except ProcessFailed as problem:
        error = str(problem)
    return {
        "case": case.name, "device": machine.device, "torch": machine.torch, "versions": machine.versions,
        "settings": {}, "seconds": None, "tokens": None, "tokens_per_s": None, "peak_allocated": None,
        "peak_reserved": None, "predicted": None, "details": {}, "ok": False, "error": error,
    }  # fmt: skip


def _run(asked: str, limit: float, log: Path) -> dict[str, Any]:
    """Run `run_case` in a process and return what it wrote.

    Raises:
        ProcessFailed: it wrote nothing.
        OutOfTime: it was killed after `limit` seconds.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, log.open("wb") as output:
        answer = Path(folder) / "result.json"
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "gpu_cases.run_case", asked, str(answer)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=_environment(), cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = child.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            raise OutOfTime from None
        finally:  # also its own children, and also if this process is interrupted
            _kill_group(child)
        if not answer.exists():
            words = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            tail = log.read_bytes()[-LAST_CHARACTERS:].decode(errors="replace")
            raise ProcessFailed(f"the process ended without a result, {words}. {tail}")
        found: dict[str, Any] = json.loads(answer.read_text())
        return found


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        child.wait()


def _environment() -> dict[str, str]:
    """Return the environment of a stage, in which the checkout can be imported and nothing is downloaded."""
    paths = [ROOT / "benchmarks", ROOT, ROOT / "plugins", *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **ENVIRONMENT,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "GPU_CASES_PARENT": str(os.getpid()),
    }
