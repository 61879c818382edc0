"""Measure the training core on one GPU: correctness, memory, speed, kernels, and TRL and unsloth beside it.

    python benchmarks/gpu.py --out DIR [--only CASE...] [--minutes N] [--retry] [--tiny]
    python benchmarks/gpu.py --list [--tiny]
    python benchmarks/gpu.py --out DIR --table

Each case runs in a process of its own with a time limit. Its result is appended to `DIR/results.jsonl` as one JSON line
as soon as it is done; what it printed is in `DIR/logs`. Cases that are in the file are skipped, so the command can be
stopped and started again at any time. `--retry` runs failed and skipped cases again. `--only` takes names in which `*`
stands for anything, such as `'train/dpo/8B/*'`. With `--minutes`, no case is started that probably takes longer than
the time that is left, and the rest is listed. The exit code is 1 if a case failed.

The models have the shapes of Qwen2.5-0.5B and 1.5B, Llama-3.2-3B and Llama-3.1-8B, random weights and random token ids;
nothing is downloaded. On a large card, a memory cap stands for a smaller one: memory is then that of the small card,
speed that of the large one. Without a card, or with `--tiny`, the same code runs with tiny models.

It needs the training core only: neither Prefect nor an installation of this project, but Python 3.11 or newer with
torch, transformers, peft, accelerate, bitsandbytes, pydantic, pluggy, safetensors, tokenizers, huggingface-hub, numpy,
scipy, jinja2 and pyyaml. On a machine without a network, the command names the missing ones and how to carry them there
as wheels. With an image for PyTorch and transformers, these are usually bitsandbytes, pydantic, pydantic-core,
annotated-types and typing-inspection.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # the checkout need not be installed

from gpu_cases.catalogue import Case, cases, select  # noqa: E402
from gpu_cases.driver import probe, run_cases  # noqa: E402
from gpu_cases.needs import how_to_carry  # noqa: E402
from gpu_cases.results_file import ResultsFile  # noqa: E402
from gpu_cases.table import table  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results")
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE", help="names of cases; * stands for anything")
    parser.add_argument("--minutes", type=float, metavar="N", help="start no case that does not fit into this time")
    parser.add_argument("--retry", action="store_true", help="run failed and skipped cases again")
    parser.add_argument("--tiny", action="store_true", help="tiny models, as without a card")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--table", action="store_true", help="print the results as a Markdown table")
    given = parser.parse_args(arguments)
    if given.list:
        print("\n".join(case.name for case in _selected(parser, given.tiny, given.only)))
        return 0
    if given.out is None:
        parser.error("--out is missing")
    results = ResultsFile(given.out)
    if given.table:
        if not results.path.exists():
            parser.error(f"there are no results at {results.path}")
        print(table(results.read()), end="")
        return 0
    try:
        with results.locked():
            return _measure(parser, given, results)
    except BlockingIOError:
        parser.error(f"another process is writing to {results.path}")


def _measure(parser: argparse.ArgumentParser, given: argparse.Namespace, results: ResultsFile) -> int:
    machine = probe(results.folder / "logs")
    if machine.missing:
        parser.error(how_to_carry(machine.missing))
    tiny = given.tiny or machine.device == "cpu"
    chosen = _selected(parser, tiny, given.only)
    there = {line["case"] for line in results.read() if line["device"] == machine.device and _counts(line, given.retry)}
    todo = [case for case in chosen if case.name not in there]
    models = " with tiny models" if tiny else ""
    print(f"{machine.device}{models}: {len(todo)} cases to run, {len(chosen) - len(todo)} already there", flush=True)
    if results.torn:
        print(f"{results.torn} incomplete lines of {results.path} are ignored", flush=True)
    failed, _ = run_cases(results, todo, machine, given.minutes)
    return 1 if failed else 0


def _counts(line: dict[str, object], retry: bool) -> bool:
    return line["ok"] is True or not retry


def _selected(parser: argparse.ArgumentParser, tiny: bool, patterns: list[str]) -> list[Case]:
    try:
        return select(cases(tiny), patterns)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
