"""Training beside TRL: the same model files, rows, adapters and threads, one side after the other, several rounds.

    python benchmarks/vs_trl.py --trl PYTHON --trl-ppo PYTHON [--models 32k 128k] [--dtypes fp32 bf16] [--tasks …]
                                [--rounds 3] [--steps 3] [--threads 1]

`--trl` is the interpreter of an environment with TRL >= 1.16 (`pip install 'alignment-flows[peer]'`), `--trl-ppo` one
with TRL 1.12.0, the last release with a PPO trainer. Each run is a process of its own; the first optimizer step is left
out. Tokens are those of the sequences, padding left out, counted in the same way on both sides. Memory is the peak
above what the process held after its imports and the base model's loading.

Every run is appended to `results/vs_trl.jsonl` and not repeated when the command is given again; the table is
`results/vs_trl.md`. Where the machine is shared, CPU seconds are the fairer clock, and the ratios are given by both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SIDES, RESULTS = HERE / "against_trl", HERE / "results"
ROWS = 64
# Task, TRL's task, and TRL's micro-batch; ours is cut by the token budget of 4096.
CONTESTS = {
    "sft": ("sft", "sft", 8),
    "sft beside TRL's packing": ("sft", "sft-packed", 8),
    "reward": ("reward", "reward", 8),
    "dpo": ("dpo", "dpo", 8),
    "dpo, TRL one pair at a time": ("dpo", "dpo", 1),
    "dpo, reference cached": ("dpo-cached", "dpo-cached", 8),
    "dpo, only ours cached": ("dpo-cached", "dpo", 8),
    "kto": ("kto", "kto", 8),
    "kto, reference cached": ("kto-cached", "kto-cached", 8),
    "ppo": ("ppo", "ppo", 8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", required=True)
    parser.add_argument("--trl-ppo", required=True)
    parser.add_argument("--models", nargs="+", default=["32k", "128k"])
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--tasks", nargs="+", default=list(CONTESTS), choices=list(CONTESTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    log = RESULTS / "vs_trl.jsonl"
    done = [json.loads(line) for line in log.open()] if log.exists() else []
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            make = f"from pathlib import Path; import world; world.make(Path({folder!r}), {model!r}, {ROWS})"
            subprocess.run([sys.executable, "-c", make], check=True, cwd=SIDES, capture_output=True)
            for run in planned(arguments, model):
                if any(run.items() <= entry.items() for entry in done):
                    continue
                entry = run | measured(run, Path(folder), arguments)
                done.append(entry)
                with log.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
                print(json.dumps(entry), flush=True)
    (RESULTS / "vs_trl.md").write_text(table(done, arguments))


def planned(arguments: argparse.Namespace, model: str) -> list[dict[str, Any]]:
    """Every run on this model, the sides alternating; what several contests share is run once a round."""
    runs: dict[str, dict[str, Any]] = {}
    for dtype in arguments.dtypes:
        for number in range(arguments.rounds):
            for ours, theirs, micro in (CONTESTS[name] for name in arguments.tasks):
                shared = {"model": model, "dtype": dtype, "round": number, "threads": arguments.threads}
                for run in (
                    {"side": "ours", "task": ours, "micro": 0, **shared},
                    {"side": "trl", "task": theirs, "micro": micro, **shared},
                ):
                    runs[json.dumps(run)] = run
    return list(runs.values())


def measured(run: dict[str, Any], folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One side's run in a process of its own."""
    theirs = arguments.trl_ppo if run["task"] == "ppo" else arguments.trl
    python = sys.executable if run["side"] == "ours" else theirs
    script = SIDES / ("ours.py" if run["side"] == "ours" else "theirs.py")
    steps = 2 if run["task"] == "ppo" else arguments.steps
    command = [python, str(script), str(folder), run["task"], run["dtype"], str(steps), str(run["micro"])]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(run["threads"]),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=SIDES)
    if ended.returncode != 0:
        return {"failed": ended.stderr.strip().splitlines()[-1]}
    result: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    return result


def table(runs: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Medians of each side and of the rounds' ratios."""
    versions = f"Python {platform.python_version()}, {os.cpu_count()} cores of {platform.machine()}"
    lines = [
        "# Training beside TRL",
        "",
        f"{date.today()}; {versions}; {arguments.threads} thread(s), at most {arguments.rounds} round(s);",
        "`python benchmarks/vs_trl.py`.",
        "Tokens per second are those of CPU time, padding left out; PPO: seconds of CPU per update of 32 episodes with",
        "64 new tokens. Ratios are medians over rounds of TRL's time to ours; memory is ours as a share of TRL's, both",
        "above the floor.",
        "",
        "| model | dtype | contest | ours | TRL | by CPU time | by wall time | ours, MiB | TRL, MiB | memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model in arguments.models:
        for dtype in arguments.dtypes:
            lines += [row for name in arguments.tasks if (row := contest(runs, model, dtype, name))]
    return "\n".join(lines) + "\n"


def contest(runs: list[dict[str, Any]], model: str, dtype: str, name: str) -> str | None:
    """One line of the table."""
    task, their_task, micro = CONTESTS[name]

    def of(side: str, task: str, micro: int) -> dict[int, dict[str, Any]]:
        wanted = {"side": side, "task": task, "micro": micro, "model": model, "dtype": dtype}
        return {run["round"]: run for run in runs if wanted.items() <= run.items() and "failed" not in run}

    ours, theirs = of("ours", task, 0), of("trl", their_task, micro)
    rounds = sorted(ours.keys() & theirs.keys())
    if not rounds:
        return None

    def each(run: dict[str, Any], clock: str) -> float:
        return float(run[clock] / (run["steps"] if task == "ppo" else run["tokens"]))

    def shown(side: dict[int, dict[str, Any]]) -> str:
        cost = statistics.median(each(side[i], "cpu") for i in rounds)
        return f"{cost:.1f} s" if task == "ppo" else f"{1 / cost:.0f}"

    by_cpu, by_wall = (
        statistics.median(each(theirs[i], clock) / each(ours[i], clock) for i in rounds) for clock in ("cpu", "wall")
    )
    peaks = [statistics.median(side[i]["peak"] for i in rounds) for side in (ours, theirs)]
    cells = [model, dtype, name, shown(ours), shown(theirs), f"{by_cpu:.2f}×", f"{by_wall:.2f}×"]
    cells += [f"{peak / 2**20:.0f}" for peak in peaks]
    return f"| {' | '.join([*cells, f'{peaks[0] / peaks[1]:.0%}'])} |"


if __name__ == "__main__":
    main()
