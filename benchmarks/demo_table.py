"""Print a table of several runs of `align demo`, with one row per seed and model.

for seed in 0 1 2; do align demo --folder demo-$seed --seed $seed; done
python benchmarks/demo_table.py demo-0 demo-1 demo-2 > benchmarks/results/demo.md
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path


def main(folders: list[str]) -> None:
    print("# Demo results by seed and model\n")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    machine = f"{os.cpu_count()} cores of {platform.machine()}, no GPU"
    print(f"{datetime.date.today()}; {machine}; Python {platform.python_version()}, {versions}.")
    print("Made by `align demo --folder demo-N --seed N` and `python benchmarks/demo_table.py demo-0 …`.\n")
    columns = ("seed", "model", "true rule, % (95 % CI)", "reward model agrees, %", "KL, nats", "length, tokens")
    print(f"| {' | '.join(columns)} | seconds | peak, MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for seed, folder in enumerate(folders):
        for line in json.loads((Path(folder) / "report.json").read_text()):
            agrees = "–" if line["reward_accuracy"] is None else f"{100 * line['reward_accuracy']:.1f}"
            cells = (
                f"{100 * line['rule']:.1f} ± {196 * line['rule_error']:.1f}",
                agrees,
                f"{line['kl']:.2f}",
                f"{line['length']:.1f}",
                f"{line['seconds']:.0f}",
                f"{line['peak_memory'] / 2**20:.0f}",
            )
            print(f"| {seed} | {line['model']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
