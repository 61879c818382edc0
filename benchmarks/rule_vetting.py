"""Run on-policy optimizers with their defaults on a rule as the reward, with five seeds, in the demo's world.

python benchmarks/rule_vetting.py --store STORE [--optimizers grpo,online_dpo]

Builds the chain (world, SFT, optimizer) for every seed. The reward is the demo's true rule, which says of each response
whether it is good. There is no reward model. Writes `benchmarks/results/rule_vetting.md`. Cached stages are reused. The
only optimizer setting that is changed is the response length, which depends on the world.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ppo_vetting import inline, json_lines

from alignment_core.config import PipelineConfig
from alignment_core.execution.build import build
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_core.stages.shared.demo_texts import TRUE_RULE
from alignment_flows.demo import LENGTH, demo_config, world_call

RESULT = Path(__file__).resolve().parent.parent / "benchmarks/results/rule_vetting.md"
OPTIMIZERS = ("grpo", "rloo")
SEEDS = range(5)
COLUMNS = (
    "optimizer", "seed", "prompts", "good before, %", "good after, %", "gain, 95 % lower bound", "KL, nats",
    "length, tokens", "kept after", "steps", "warnings",
)  # fmt: skip


@dataclass(frozen=True)
class Vetted:
    """One run of an optimizer with its defaults.

    Attributes:
        optimizer: its name.
        seed: seed of the complete chain.
        prompts: number of held-out prompts that were not used to select the policy.
        before, after: share of good responses to them, of the SFT model and of the aligned model.
        lower: lower bound of the gain's 95 % interval, by prompt.
        kl: KL from the SFT model in nats per response.
        ceiling: the KL at which training would have stopped.
        length: mean tokens of a response, before and after.
        kept: number of rollouts after which the kept policy was saved.
        steps: number of optimizer steps.
        warnings: the warnings of the training.
    """

    optimizer: str
    seed: int
    prompts: int
    before: float
    after: float
    lower: float
    kl: float
    ceiling: float
    length: tuple[float, float]
    kept: int
    steps: int
    warnings: list[str]


def settings_of(name: str, seed: int, store: Path) -> dict[str, Any]:
    """Return the settings of a run whose reward is the true rule of this seed's world."""
    world = build(inline(world_call(store, seed)), Silent()).artifact.path
    settings = demo_config(world, store, seed, "ppo").model_dump(mode="json")
    # No feedback is collected and no reward model is trained: the rule judges every response.
    del settings["sample"], settings["rank"]
    settings["reward"]["by"] = [TRUE_RULE]
    settings["evaluation"]["reward_model"] = False
    return settings | {"optimizer": {"name": name, **LENGTH}, "isolation": "inline"}


def vet(name: str, seed: int, store: Path) -> Vetted:
    """Build the chain for one optimizer and seed, and measure its effect."""
    config, registry = PipelineConfig.model_validate(settings_of(name, seed, store)), load_registry()
    optimizer: Any = registry.optimizer(config.optimizer)
    calls = plan_pipeline(config, registry).calls()
    built = {
        stage: build(calls[stage], Silent()) for stage in ("ingest", "sft", "evaluate_sft", "optimize", "evaluate")
    }
    history = json_lines(built["optimize"], "metrics.jsonl")
    # The first held-out prompts were used to select the policy.
    before, after = (
        [line["wordlist"] for line in json_lines(built[stage], "responses.jsonl")[optimizer.held_out_prompts :]]
        for stage in ("evaluate_sft", "evaluate")
    )
    gains = [now - then for then, now in zip(before, after, strict=True)]
    return Vetted(
        optimizer=name,
        seed=seed,
        prompts=len(gains),
        before=fmean(before),
        after=fmean(after),
        lower=fmean(gains) - 1.96 * stdev(gains) / math.sqrt(len(gains)),
        kl=built["evaluate"].metrics["kl"],
        ceiling=optimizer.kl_ceiling,
        length=(built["evaluate_sft"].metrics["response_length"], built["evaluate"].metrics["response_length"]),
        kept=round([line["kept_after_rollout"] for line in history if "kept_after_rollout" in line][-1]),
        steps=built["optimize"].metrics["steps"],
        warnings=built["optimize"].metrics["warnings"],
    )


def table(lines: Sequence[Vetted]) -> str:
    """Return the results page."""
    names = ",".join(dict.fromkeys(line.optimizer for line in lines))
    packages = ("torch", "transformers", "peft")
    versions = ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)])
    page = f"""# On-policy optimizers on a rule, with default settings

{datetime.date.today()}; {os.cpu_count()} cores of {platform.machine()}, no GPU; {versions}.
Made by `python benchmarks/rule_vetting.py --store STORE --optimizers {names}`.
The seed applies to the complete chain: world, SFT model and optimizer. The reward is the true rule of the demo's world,
1 for a good response and 0 for another. Shares are of held-out prompts that were not used to select the policy.

| {" | ".join(COLUMNS)} |
|{" --- |" * len(COLUMNS)}
"""
    for line in lines:
        cells = (
            line.optimizer,
            str(line.seed),
            str(line.prompts),
            f"{100 * line.before:.1f}",
            f"{100 * line.after:.1f}",
            f"{100 * (line.after - line.before):.1f}, {100 * line.lower:.1f}",
            f"{line.kl:.2f} of {line.ceiling:g}",
            f"{line.length[0]:.1f} → {line.length[1]:.1f}",
            f"{line.kept} rollouts",
            str(line.steps),
            "; ".join(line.warnings) or "none",
        )
        page += f"| {' | '.join(cells)} |\n"
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--store", type=Path, required=True, help="folder of the artifact store")
    parser.add_argument("--optimizers", default=",".join(OPTIMIZERS), help="names, separated by commas")
    arguments = parser.parse_args()
    lines = []
    for optimizer in arguments.optimizers.split(","):
        for seed in SEEDS:
            lines.append(vet(optimizer, seed, arguments.store.absolute()))
            print(lines[-1], flush=True)
    RESULT.write_text(table(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
