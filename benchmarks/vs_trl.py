"""Compare training with TRL: the same model files, rows, adapters and threads, alternating, in several rounds.

    python benchmarks/vs_trl.py [--models 32k 128k] [--dtypes fp32 bf16] [--tasks …] [--rounds 3] [--steps 1]
                                [--threads 1] [--limit] [--trl-ppo .venv/trl-1.12]

Needs TRL >= 1.16 (`pip install -c constraints.txt -e '.[peer]'`), and for PPO a folder with TRL 1.12.0, the last
release with a PPO trainer (`make .venv/trl-1.12`). Each run is a separate process. Before the clock starts, both sides
run a short forward and backward pass of the model. Tokens are those of the sequences, without padding, counted in the
same way on both sides. Memory is the peak above the memory of the process after imports and loading the models.

`--limit` also times `against_trl/bare.py`, which runs only the passes that the task needs.

Every run is appended to `results/vs_trl.jsonl` and is not repeated when the command runs again. Delete the file to
measure everything again. The table of all runs is `results/vs_trl.md`; `--rounds 0` writes it without running anything.
On a shared machine, CPU seconds are the fairer clock. Ratios are reported for both clocks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from alignment_core.processes.start import ENVIRONMENT
from alignment_core.texts import percent

HERE = Path(__file__).parent
SIDES, RESULTS = HERE / "against_trl", HERE / "results"
ROWS = 64
ON_POLICY = ("ppo", "grpo")
"""Tasks of which one update is timed."""


class Contest(NamedTuple):
    """Two runs to compare: a task of `ours.py` and a task of `theirs.py`."""

    ours: str
    trl: str
    micro: int = 8
    """Rows of TRL's micro-batches; 8 is its default."""
    budget: int = 4096
    """Token budget of our micro-batches; with 1, each row is a micro-batch."""
    faster: float | None = None
    """Target: lowest acceptable ratio of TRL's time to ours."""
    memory: float | None = None
    """Target: largest acceptable share of TRL's memory."""


CONTESTS = {
    "grpo": Contest("grpo", "grpo", faster=2, memory=0.4),
    "ppo": Contest("ppo", "ppo", budget=1024, faster=3, memory=0.4),
    "ppo, our token budget 4096": Contest("ppo", "ppo"),
    "sft": Contest("sft", "sft", faster=1.5, memory=0.6),
    "reward": Contest("reward", "reward", faster=1.3, memory=0.6),
    "dpo": Contest("dpo", "dpo", faster=2, memory=0.4),
    "dpo, reference cached": Contest("dpo-cached", "dpo-cached", faster=1.5, memory=0.4),
    "dpo, only ours cached": Contest("dpo-cached", "dpo"),
    "kto": Contest("kto", "kto", faster=2, memory=0.4),
    "kto, reference cached": Contest("kto-cached", "kto-cached"),
    "sft beside TRL's packing": Contest("sft", "sft-packed", faster=1.5, memory=0.6),
    "sft, one row at a time": Contest("sft", "sft", 1, 1),
    "dpo, one pair at a time": Contest("dpo", "dpo", 1, 1),
    "kto, one row at a time": Contest("kto", "kto", 1, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["32k", "128k"])
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--tasks", nargs="+", default=list(CONTESTS), choices=list(CONTESTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", action="store_true", help="also time the bare passes of against_trl/bare.py")
    parser.add_argument("--trl-ppo", type=Path, default=Path(sys.prefix) / "trl-1.12")
    arguments = parser.parse_args()
    log = RESULTS / "vs_trl.jsonl"
    done = [json.loads(line) for line in log.open()] if log.exists() else []
    sides = {name: Side(name, arguments) for name in ("ours", "trl", "trl-ppo", "bare")}
    for model in arguments.models:
        todo = [run for run in planned(arguments, model) if not any(run.items() <= entry.items() for entry in done)]
        if not todo:
            continue
        with tempfile.TemporaryDirectory() as folder:
            make = f"from pathlib import Path; import world; world.make(Path({folder!r}), {model!r}, {ROWS})"
            subprocess.run([sys.executable, "-c", make], check=True, cwd=SIDES, capture_output=True)
            for run in todo:
                side = "trl-ppo" if (run["side"], run["task"]) == ("trl", "ppo") else run["side"]
                entry = run | sides[side].measured(run, folder, arguments.steps)
                done.append(entry)
                with log.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
                print(json.dumps(entry), flush=True)
    for started in sides.values():
        started.end()
    (RESULTS / "vs_trl.md").write_text(table(done, arguments.threads))


def planned(arguments: argparse.Namespace, model: str) -> list[dict[str, Any]]:
    """Return all runs for this model, alternating the sides; a run that contests share is run once per round."""
    runs: dict[str, dict[str, Any]] = {}
    for number in range(arguments.rounds):
        for dtype in arguments.dtypes:
            for contest in (CONTESTS[name] for name in arguments.tasks):
                shared = {"model": model, "dtype": dtype, "round": number, "threads": arguments.threads}
                for run in (
                    {"side": "trl", "task": contest.trl, "micro": contest.micro, **shared},
                    {"side": "ours", "task": contest.ours, "micro": contest.budget, **shared},
                    *([{"side": "bare", "task": contest.ours, "micro": 1, **shared}] if arguments.limit else []),
                ):
                    runs[json.dumps(run)] = run
    return list(runs.values())


class Side:
    """A process that has imported one side's libraries and runs tasks on request; started at the first request."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.script = SIDES / {"ours": "ours.py", "bare": "bare.py"}.get(name, "theirs.py")
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(arguments.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "TRL_EXPERIMENTAL_SILENCE": "1",
        }
        if name == "ours":  # the environment of `align`'s stages
            self.environment = ENVIRONMENT | self.environment
        if name == "trl-ppo":
            self.environment["PYTHONPATH"] = str(arguments.trl_ppo.resolve())
        self.process: subprocess.Popen[str] | None = None

    def measured(self, run: dict[str, Any], folder: str, steps: int) -> dict[str, Any]:
        if self.process is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self.process = subprocess.Popen(
                [sys.executable, str(self.script)], text=True, cwd=SIDES, env=self.environment, **pipes
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        steps = 1 if run["task"] in ON_POLICY else steps
        asked = {"folder": folder, "task": run["task"], "dtype": run["dtype"], "steps": steps, "micro": run["micro"]}
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def end(self) -> None:
        if self.process is not None:
            self.process.communicate()


def table(runs: list[dict[str, Any]], threads: int) -> str:
    """Return the results page: medians of each side and of the ratios per round."""
    versions = f"Python {platform.python_version()}, {os.cpu_count()} cores of {platform.machine()}, " + ", ".join(
        f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "trl")
    )
    lines = [
        "# Training compared with TRL",
        "",
        f"{date.today()}; {versions} (PPO: trl 1.12.0); {threads} thread{'s' * (threads != 1)}, with other load on",
        "the machine. Made by `python benchmarks/vs_trl.py`.",
        "",
        "`ours` and `TRL` are tokens per second of CPU time, without padding. For PPO and GRPO they are CPU seconds",
        "per update of 32 responses with 64 tokens: in PPO to 32 prompts, with 4 passes over them; in GRPO 8 responses",
        "to each of 4 prompts, with 1 pass and, on both sides, a KL penalty in the loss. Speedups are medians over the",
        "rounds of TRL's time / our time.",
        "`ours / bare` is our CPU time as a multiple of that of the bare passes (`against_trl/bare.py`), which",
        "compute a shared prompt once per completion. Memory is the peak above the memory after loading the models.",
        "Targets are in parentheses.",
        "",
        "| model | dtype | contest | rounds | ours | TRL | speedup, CPU time | speedup, wall time | ours / bare "
        "| ours, MiB | TRL, MiB | memory, ours / TRL |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model, dtype in itertools.product(("32k", "128k"), ("fp32", "bf16")):
        lines += [row for name in CONTESTS if (row := line(runs, model, dtype, name))]
    lines += [""]
    for run in runs:
        if "failed" in run:
            lines += [f"Failed: {run['side']} {run['task']}, {run['model']} {run['dtype']}: {run['failed']}."]
    lines += sorted({run["note"] for run in runs if "note" in run})
    return "\n".join(lines).rstrip() + "\n"


def line(runs: list[dict[str, Any]], model: str, dtype: str, name: str) -> str | None:
    """Return one row of the table, or None if no round has both sides."""
    contest = CONTESTS[name]

    def of(side: str, task: str, micro: int) -> dict[int, dict[str, Any]]:
        wanted = {"side": side, "task": task, "micro": micro, "model": model, "dtype": dtype}
        return {run["round"]: run for run in runs if wanted.items() <= run.items() and "failed" not in run}

    ours, theirs = of("ours", contest.ours, contest.budget), of("trl", contest.trl, contest.micro)
    bare = of("bare", contest.ours, 1)
    rounds = sorted(ours.keys() & theirs.keys())
    if not rounds:
        return None

    def each(run: dict[str, Any], clock: str) -> float:
        return float(run[clock] / (1 if contest.ours in ON_POLICY else run["tokens"]))

    def shown(side: dict[int, dict[str, Any]]) -> str:
        cost = statistics.median(each(side[i], "cpu") for i in rounds)
        return f"{cost:.1f} s" if contest.ours in ON_POLICY else f"{1 / cost:.0f}"

    def ratio(one: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]], clock: str) -> str:
        both = sorted(one.keys() & other.keys())
        return f"{statistics.median(each(one[i], clock) / each(other[i], clock) for i in both):.2f}×" if both else "–"

    peaks = [statistics.median(side[i]["peak"] for i in rounds) for side in (ours, theirs)]
    faster = "" if contest.faster is None else f" (≥ {contest.faster:g}×)"
    memory = "" if contest.memory is None else f" (≤ {percent(contest.memory)})"
    cells = [model, dtype, name, str(len(rounds)), shown(ours), shown(theirs), ratio(theirs, ours, "cpu") + faster]
    cells += [ratio(theirs, ours, "wall"), ratio(ours, bare, "cpu"), *(f"{peak / 2**20:.0f}" for peak in peaks)]
    return f"| {' | '.join([*cells, percent(peaks[0] / peaks[1]) + memory])} |"


if __name__ == "__main__":
    main()
