"""Inject faults, one after another, and write the table of what was injected, how often and what was lost.

    python benchmarks/faults.py [--rounds 1] [--minutes 600] [--only WORD ...] [--log LOG] [--out results/faults.md]

Each case is a test of the fault suite. A round runs each of them once, with other random moments than the round before.
What ran is noted in the log (`faults.jsonl`) and is not repeated when the script is started again: delete the log to
begin anew. After `--minutes` no tests of another file are started. The tests compare every file of every artifact, and
every acknowledged vote, with what an unbroken run made.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import circumstances_line

ROOT = Path(__file__).resolve().parent.parent
KILLS, RUNS = "tests/execution/test_kills.py", "tests/faults/test_runs.py"
OUTAGES, VOTES = "tests/flows/serve/test_outages.py", "tests/feedback/test_writers.py"
OUTCOME = re.compile(r"(?P<test>tests/.*\S) (?P<outcome>PASSED|FAILED|ERROR|SKIPPED)\b")
OUTCOMES = {"PASSED": "passed", "FAILED": "failed", "ERROR": "failed", "SKIPPED": "not run"}
STAGES = ("ingest", "sft", "sample", "reward", "reference", "reference of kto", "dpo", "kto", "ppo", "evaluate")


@dataclass(frozen=True)
class Case:
    """A test that injects faults: what it injects, where, how often, and its name."""

    what: str
    where: str
    faults: int
    test: str


def cases() -> Iterator[Case]:
    """Yield the cases of a round."""
    for stage in STAGES:
        test = f"{KILLS}::test_kills_of_every_stage_do_not_change_the_result[{stage}]"
        yield Case("SIGKILL of a stage at a counted event", stage, 3, test)
    for kind in ("dpo", "kto", "ppo"):
        for victim in ("stage", "flow", "both"):
            what = {"stage": "a stage", "flow": "`align run`", "both": "`align run` and its stage"}[victim]
            yield Case(f"SIGKILL of {what}", f"run with {kind}", 1, f"{RUNS}::test_killed_run[{kind}-{victim}]")
    for count in (2, 4, 8):
        yield Case(f"{count} runs at once on one store", "run with kto", 1, f"{RUNS}::test_runs_at_once[{count}]")
    for part in range(1, 5):
        yield Case("disk full at a random write", "run with kto", 1, f"{RUNS}::test_full_disk[{part}]")
    yield Case(
        "SIGKILL of the server, started again", "dpo", 1, f"{OUTAGES}::test_run_survives_a_restart_of_the_server"
    )
    long = "test_run_crashed_by_a_long_server_outage_is_retried_without_losses"
    yield Case("server gone for minutes", "dpo", 1, f"{OUTAGES}::{long}")
    yield Case("SIGKILL of the worker", "dpo", 1, f"{OUTAGES}::test_run_survives_the_kill_of_its_worker")
    killed = "test_killed_run_stops_its_stage_and_is_marked_as_crashed"
    yield Case("SIGKILL of a worker's run", "dpo", 1, f"{OUTAGES}::{killed}")
    yield Case("SIGKILL of all of a machine", "dpo", 1, f"{OUTAGES}::test_run_of_a_dead_machine_is_marked_as_crashed")
    retrain = "tests/flows/test_retraining_killed.py::test_votes_of_a_killed_retrain_are_learned_from_once"
    yield Case("SIGKILL of `align retrain`", "kto", 1, retrain)
    yield Case(
        "SIGKILL of one of several writers of votes",
        "feedback store",
        1,
        f"{VOTES}::test_acknowledged_votes_survive_a_kill",
    )


def inject(cases: Sequence[Case], number: int) -> Iterator[dict[str, Any]]:
    """Run the tests of one file. Yield the outcome of each as soon as it is known."""
    named = {case.test: case for case in cases}
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:xdist", "-m", "", *named]
    env = {**os.environ, "KILL_SEED": str(number), "OMP_NUM_THREADS": "1", "COLUMNS": "500"}
    started = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            found = OUTCOME.match(line)
            if found is None or found["test"] not in named:
                print(line, end="", file=sys.stderr)
                continue
            seconds, started = round(time.monotonic() - started), time.monotonic()
            case = named[found["test"]]
            yield {"round": number, **vars(case), "outcome": OUTCOMES[found["outcome"]], "seconds": seconds}


def read(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for fault in found:
        rows.setdefault((fault["what"], fault["where"]), []).append(fault)
    lines = [
        "# Faults",
        "",
        "Made by `python benchmarks/faults.py`. Nothing is lost if every file of every artifact equals that of an",
        "unbroken run, each key was built once, and every acknowledged vote is there exactly once.",
        "",
        circumstances_line("prefect", "torch"),
        "",
        "| injected | in | times | lost |",
        "|---|---|--:|---|",
    ]
    for (what, place), faults in rows.items():
        ran = [fault for fault in faults if fault["outcome"] != "not run"]
        lost = [fault for fault in ran if fault["outcome"] == "failed"]
        times = sum(fault["faults"] for fault in ran)
        result = "not run" if not ran else f"{len(lost)} of {len(ran)} tests failed" if lost else "nothing"
        lines.append(f"| {what} | {place} | {times} | {result} |")
    total = sum(fault["faults"] for fault in found if fault["outcome"] != "not run")
    tried = {(fault["what"], fault["where"]) for fault in found}
    left: dict[str, list[str]] = {}
    for case in cases():
        if (case.what, case.where) not in tried and case.where not in left.setdefault(case.what, []):
            left[case.what].append(case.where)
    lines += ["", f"{total} faults in all."]
    if missing := [f"- {what}: {', '.join(places)}" for what, places in left.items() if places]:
        lines += ["", "Not injected yet:", "", *missing]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--only", nargs="+", default=[""], help="only tests whose name contains one of these words")
    parser.add_argument("--log", type=Path, default=Path("faults.jsonl"))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/faults.md")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    for number in range(arguments.rounds):
        done = {fault["test"] for fault in read(arguments.log) if fault["round"] == number}
        files: dict[str, list[Case]] = {}
        for case in cases():
            if case.test not in done and any(word in case.test for word in arguments.only):
                files.setdefault(case.test.partition("::")[0], []).append(case)
        for together in files.values():
            if time.monotonic() > deadline:
                break
            for fault in inject(together, number):
                with arguments.log.open("a") as log:
                    log.write(json.dumps(fault) + "\n")
                print(f"{fault['outcome']} in {fault['seconds']} s: {fault['what']}, {fault['where']}", flush=True)
                arguments.out.write_text(table(read(arguments.log)))


if __name__ == "__main__":
    main()
