"""Run on-policy optimizers with their defaults on a rule as the reward, with five seeds, in the demo's world.

python benchmarks/rule_vetting.py --store STORE [--optimizers grpo,rloo] [--seeds 1,4 --set learning_rate=5e-4]

Builds the chain (world, SFT, optimizer) for every seed. The reward is the demo's true rule, which says of each response
whether it is good. There is no reward model. Writes `benchmarks/results/rule_vetting.md`. Cached stages are reused. The
only optimizer setting that is changed is the response length, which depends on the world. With some of the seeds or
other settings, the results are only printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vetting import Effect, environment, inline, markdown_table

from alignment_core.config_file import check_config
from alignment_core.execution.build import build
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_core.stages.shared.demo_texts import TRUE_RULE
from alignment_flows.demo import LENGTH, demo_config, world_call

RESULT = Path(__file__).resolve().parent.parent / "benchmarks/results/rule_vetting.md"
OPTIMIZERS = ("grpo", "rloo", "online_dpo")
SEEDS = range(5)
COLUMNS = (
    "optimizer", "seed", "prompts", "good before, %", "good after, %", "gain, 95 % lower bound", "KL, nats",
    "length, tokens", "kept after", "steps", "warnings",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Vetted(Effect):
    """One run of an optimizer with its defaults. The seed is that of the complete chain, and scores are 1 if good.

    Attributes:
        optimizer: its name.
        steps: number of optimizer steps.
    """

    optimizer: str
    steps: int


def settings_of(name: str, seed: int, store: Path) -> dict[str, Any]:
    """Return the settings of a run whose reward is the true rule of this seed's world."""
    world = build(inline(world_call(store, seed)), Silent()).artifact.path
    settings = demo_config(world, store, seed, "ppo").model_dump(mode="json")
    # No feedback is collected and no reward model is trained: the rule judges every response.
    del settings["sample"], settings["rank"]
    settings["reward"]["by"] = [TRUE_RULE]
    settings["evaluation"]["reward_model"] = False
    return settings | {"optimizer": {"name": name, **LENGTH}, "isolation": "inline"}


def vet(name: str, seed: int, store: Path, changes: Sequence[str] = ()) -> Vetted:
    """Build the chain for one optimizer and seed, with changes of its defaults, and measure its effect."""
    own = [f"optimizer.{change}" for change in changes]
    config, registry = check_config(settings_of(name, seed, store), own), load_registry()
    optimizer: Any = registry.optimizer(config.optimizer)
    calls = plan_pipeline(config, registry).calls()
    built = {
        stage: build(calls[stage], Silent()) for stage in ("ingest", "sft", "evaluate_sft", "optimize", "evaluate")
    }
    steps = built["optimize"].metrics["steps"]
    return Vetted.of(built, optimizer, seed, "wordlist", optimizer=name, steps=steps)


def table(lines: Sequence[Vetted]) -> str:
    """Return the results page."""
    names = ",".join(dict.fromkeys(line.optimizer for line in lines))
    return f"""# On-policy optimizers on a rule, with default settings

{environment()}
Made by `python benchmarks/rule_vetting.py --store STORE --optimizers {names}`.
The seed applies to the complete chain: world, SFT model and optimizer. The reward is the true rule of the demo's world,
1 for a good response and 0 for another. Shares are of held-out prompts that were not used to select the policy.

{markdown_table(COLUMNS, map(_cells, lines))}"""


def _cells(line: Vetted) -> Sequence[str]:
    kl, length, kept, warnings = line.cells()
    return (
        line.optimizer,
        str(line.seed),
        str(line.prompts),
        f"{100 * line.before:.1f}",
        f"{100 * line.after:.1f}",
        f"{100 * (line.after - line.before):.1f}, {100 * line.lower:.1f}",
        kl,
        length,
        kept,
        str(line.steps),
        warnings,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--store", type=Path, required=True, help="folder of the artifact store")
    parser.add_argument("--optimizers", default=",".join(OPTIMIZERS), help="names, separated by commas")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="seeds, separated by commas")
    parser.add_argument("--set", dest="changes", action="append", default=[], help="another value of a default setting")
    arguments = parser.parse_args()
    seeds = list(map(int, arguments.seeds.split(",")))
    lines = []
    for optimizer in arguments.optimizers.split(","):
        for seed in seeds:
            lines.append(vet(optimizer, seed, arguments.store.absolute(), arguments.changes))
            print(lines[-1], flush=True)
    if seeds == list(SEEDS) and not arguments.changes:
        RESULT.write_text(table(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
