"""Print a table of several runs of `align demo`, with one row per seed and model.

for seed in 0 1 2; do
    align demo --folder demo-$seed --seed $seed && python benchmarks/demo_optimum.py demo-$seed --seed $seed
done
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
from typing import Any

from demo_optimum import OPTIMUM

COLUMNS = (
    *("seed", "model", "true rule, % (95 % CI)", "best at this KL, %", "best by the reward model, %"),
    *("KL, nats", "least KL for this share", "reward model agrees, %", "length, tokens", "seconds", "peak, MiB"),
)
NOTES = """
**Best at this KL** is the share of the best policy with the same KL from the SFT model: SFT's distribution times
exp(λ · rule), normalized for each prompt, with the λ that gives this KL. It is estimated by weighting {samples}
responses of the SFT model to each of the {prompts} prompts. **Best by the reward model** is the same with the reward
model's score in place of the rule: what optimizing this reward model as well as possible at this KL would give. In
brackets: 95 % bootstrap interval over prompts, and the effective number of responses per prompt that carry the weight.
`max` marks a KL that no weighting of the responses reaches. **Least KL for this share** is the KL of the best
policy whose share is the model's own.

{samples} responses per prompt cannot spend more KL than the logarithm of their number. Near that, the best share by the
rule comes out too low. By the reward model it may err either way, because the share falls again where that model is
optimized too far. With half of the responses, the columns change by at most {rule_bias:.1f} points (rule) and
{reward_bias:.1f} points (reward model). For {never_good} of the prompts, no response was good.

Seconds are the wall time of the stage that trained the model, which other programs on the machine lengthen.

With the sign of DPO's loss reversed (`pytest -m slow -k wrong_sign`, seed 0), the share of answers that satisfy the
true rule fell from SFT's 37.5 % to 1.6 % (measured on 2026-11-23, on other held-out prompts)."""


def main(folders: list[str]) -> None:
    print("# Demo results by seed and model\n")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    machine = f"{os.cpu_count()} cores of {platform.machine()}, no GPU"
    print(f"{datetime.date.today()}; {machine}; Python {platform.python_version()}, {versions}.")
    optima = [json.loads((Path(folder) / OPTIMUM).read_text()) for folder in folders]
    notes = _over_all(optima)
    print(
        "Made by `align demo --folder demo-N --seed N`, `python benchmarks/demo_optimum.py demo-N --seed N --samples "
        f"{notes['samples']}` and `python benchmarks/demo_table.py demo-0 …`.\n"
    )
    print(f"| {' | '.join(COLUMNS)} |")
    print(f"|{' --- |' * len(COLUMNS)}")
    for seed, (folder, optimum) in enumerate(zip(folders, optima, strict=True)):
        for line in json.loads((Path(folder) / "report.json").read_text()):
            print(f"| {seed} | {line['model']} | {' | '.join(_cells(line, optimum['models'][line['model']]))} |")
    print(NOTES.format(**notes))


def _cells(line: dict[str, Any], optimum: dict[str, Any]) -> tuple[str, ...]:
    agrees = "–" if line["reward_accuracy"] is None else f"{100 * line['reward_accuracy']:.1f}"
    return (
        f"{100 * line['rule']:.1f} ± {196 * line['rule_error']:.1f}",
        _point(optimum["rule"]),
        _point(optimum["reward"]),
        f"{line['kl']:.2f}",
        f"{optimum['least_kl']:.2f}",
        agrees,
        f"{line['length']:.1f}",
        f"{line['seconds']:.0f}",
        f"{line['peak_memory'] / 2**20:.0f}",
    )


def _point(found: dict[str, Any]) -> str:
    interval = f"{100 * found['low']:.1f}–{100 * found['high']:.1f}; {found['effective']:.0f}"
    return f"{100 * found['value']:.1f} ({interval}{'; max' if found['saturated'] else ''})"


def _over_all(optima: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the notes say of all seeds."""
    models = [model for optimum in optima for model in optimum["models"].values()]
    bias = {
        f"{by}_bias": 100 * max(abs(model[by]["value"] - model["halved"][by]["value"]) for model in models)
        for by in ("rule", "reward")
    }
    (samples,), (prompts,) = ({optimum[name] for optimum in optima} for name in ("samples", "prompts"))
    never = " + ".join(str(optimum["never_good"]) for optimum in optima)
    return {"samples": samples, "prompts": prompts, "never_good": never, **bias}


if __name__ == "__main__":
    main(sys.argv[1:])
