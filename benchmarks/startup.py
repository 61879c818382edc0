"""Measure how long small commands take: help, a check of four rows without and with a model, and a cached run.

    python benchmarks/startup.py CONFIG [--runs 5] [--out benchmarks/results/startup.json]

CONFIG is the config of the cached run; its model also counts the tokens of the check. There is no Prefect server;
`prefect_overhead.py` measures the same run with one. The first run of each command is not measured: it builds what is
missing from the store.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from prefect_overhead import WITH_PREFECT, measure, medians
from report import circumstances, report

from alignment_core.config_file import load_config

ROWS = [
    {"prompt": f"What is {number} plus {number}?", "chosen": f"It is {2 * number}.", "rejected": "I do not know."}
    for number in range(4)
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    model = load_config(arguments.config).model
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PREFECT_HOME"] = folder
        os.environ.pop("PREFECT_API_URL", None)
        rows = Path(folder) / "four_rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        template = () if model.chat_template is None else ("--chat-template", str(model.chat_template))
        check = ("data", "check", str(rows))
        commands = {
            "align --help": ("--help",),
            "align data check": check,
            "align data check --model": (*check, "--model", str(model.base), *template),
            "align run, cached": ("run", str(arguments.config)),
        }
        for command in commands.values():
            measure(WITH_PREFECT, *command)
        measured = {
            name: medians([measure(WITH_PREFECT, *command) for _ in range(arguments.runs)])
            for name, command in commands.items()
        }
    result = {
        "what": "wall and processor seconds of commands that have little to do",
        "config": str(arguments.config),
        **circumstances("prefect", "transformers", "pyarrow"),
        "runs": arguments.runs,
        **measured,
    }
    report(result, arguments.out)


if __name__ == "__main__":
    main()
