"""Run PPO with its defaults in two worlds with five seeds, and measure the held-out reward and the KL it costs.

python benchmarks/ppo_vetting.py --store STORE --data SHARED_DATA

Builds the chain (SFT, reward model, PPO) and writes `benchmarks/results/ppo_vetting.md` and
`docs/optimizers/ppo-vetting.svg`. In the demo world, the complete chain is built for every seed. Cached stages are
reused. The only optimizer setting that is changed is the response length, which depends on the world.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from vetting import Effect, environment, inline, json_lines, markdown_table, scores_of

from alignment_core.artifacts import key_of
from alignment_core.config import PipelineConfig
from alignment_core.config_file import load_config
from alignment_core.execution.build import build
from alignment_core.execution.stage import StageCall
from alignment_core.planning.pipeline import VERSIONS, plan_pipeline
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_flows.demo import demo_config, world_call

ROOT = Path(__file__).resolve().parent.parent
RESULT, PICTURE = ROOT / "benchmarks/results/ppo_vetting.md", ROOT / "docs/optimizers/ppo-vetting.svg"
SEEDS = range(5)
COLUMNS = (
    "world", "seed", "prompts", "SFT score", "PPO score", "gain, 95 % lower bound", "KL, nats", "length, tokens",
    "kept after", "true rule, %", "warnings",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Vetted(Effect):
    """One run of PPO with its defaults, scored by the reward model.

    The seed is that of PPO, and in the demo world of the complete chain before it.

    Attributes:
        world: `demo` or `stories260k`.
        rule: share of good responses by the world's true rule, before and after; None if the world has no such rule.
        curve: rollouts, held-out score and held-out KL at each measurement during training.
    """

    world: str
    rule: tuple[float, float] | None
    curve: list[tuple[int, float, float]]


def reseeded(call: StageCall, seed: int, parents: dict[str, str]) -> StageCall:
    """Return the same stage with a different seed from the stages before it."""
    config, parents = call.config | {"seed": seed}, call.parents | parents
    key = key_of(stage=call.stage, version=VERSIONS[call.stage], config=config, parents=parents)
    return call.model_copy(update={"config": config, "parents": parents, "key": key})


def demo(store: Path, data: Path, seed: int) -> dict[str, Any]:
    """Return the config for the demo world: a reward model trained on noisy comparisons by a known rule."""
    world = build(inline(world_call(store, seed)), Silent()).artifact.path
    settings = demo_config(world, store, seed, "ppo").model_dump(mode="json")
    return settings | {"optimizer": {"name": "ppo", "max_new_tokens": 40}}


def stories(store: Path, data: Path, seed: int) -> dict[str, Any]:
    """Return the config for a real tiny model with human pairs (would a kind person say this sentence?).

    All seeds share one reward model.
    """
    os.environ["ALIGN_SHARED_DATA"] = str(data)
    settings = load_config(ROOT / "deployments/configs/ppo-stories260k.yaml").model_dump(mode="json")
    settings["model"] |= {"load_in": "fp32", "chat_template": str(ROOT / "deployments/configs/stories260k.jinja")}
    settings["data"]["held_out_fraction"] = 0.3
    settings["data"]["sources"][0]["columns"]["prompt"] = "statement"  # only the sentence: a third of the tokens
    settings["evaluation"]["max_prompts"] = 256
    return settings | {"optimizer": {"name": "ppo", "max_new_tokens": 8}, "seed": 0, "store": str(store)}


WORLDS: dict[str, Callable[[Path, Path, int], dict[str, Any]]] = {"demo": demo, "stories260k": stories}


def vet(world: str, seed: int, store: Path, data: Path) -> Vetted:
    """Build the chain for one world and seed, and measure the effect of PPO."""
    settings = WORLDS[world](store, data, seed)
    config = PipelineConfig.model_validate(settings | {"isolation": "inline"})
    registry = load_registry()
    optimizer: Any = registry.optimizer(config.optimizer)
    calls = plan_pipeline(config, registry).calls()
    if config.seed != seed:
        calls["optimize"] = reseeded(calls["optimize"], seed, {})
        calls["evaluate"] = reseeded(calls["evaluate"], seed, {"policy": calls["optimize"].key})
    built = {name: build(call, Silent()) for name, call in calls.items()}
    history = json_lines(built["optimize"], "metrics.jsonl")
    measured = [entry for entry in history if "held_out_score" in entry]
    rule = None
    if "wordlist" in json_lines(built["evaluate"], "responses.jsonl")[0]:
        before, after = scores_of(built, optimizer, "wordlist")
        rule = fmean(before), fmean(after)
    places = [min(i * optimizer.held_out_every, optimizer.rollouts) for i in range(len(measured))]
    curve = [(p, e["held_out_score"], e["held_out_kl"]) for p, e in zip(places, measured, strict=True)]
    return Vetted.of(built, optimizer, seed, "reward", world=world, rule=rule, curve=curve)


def table(lines: Iterable[Vetted]) -> str:
    """Return the results page."""
    return f"""# PPO with default settings

{environment()}
Made by `python benchmarks/ppo_vetting.py --store STORE --data SHARED_DATA`.
The seed applies to PPO, and in the demo world to the complete chain before it. On stories260k, all seeds share one
reward model. Scores are from the reward model, on held-out prompts that were not used to select the policy.

{markdown_table(COLUMNS, map(_cells, lines))}"""


def _cells(line: Vetted) -> Sequence[str]:
    kl, length, kept, warnings = line.cells()
    return (
        line.world,
        str(line.seed),
        str(line.prompts),
        f"{line.before:.3f}",
        f"{line.after:.3f}",
        f"{line.after - line.before:.3f}, {line.lower:.3f}",
        kl,
        length,
        kept,
        "–" if line.rule is None else f"{100 * line.rule[0]:.1f} → {100 * line.rule[1]:.1f}",
        warnings,
    )


def draw(lines: Sequence[Vetted], file: Path) -> None:
    """Draw the learning curves, and the reward against its cost in KL."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "ppo"
    figure, grid = pyplot.subplots(2, len(WORLDS), figsize=(8, 5.4), layout="constrained", squeeze=False)
    for column, world in enumerate(WORLDS):
        for line in (line for line in lines if line.world == world):
            rollouts, scores, kls = zip(*line.curve, strict=True)
            grid[0, column].plot(rollouts, scores, marker=".", label=f"seed {line.seed}")
            grid[1, column].plot(kls, scores, marker=".")
        grid[0, column].set(title=world, xlabel="rollouts", ylabel="held-out score")
        grid[1, column].set(xlabel="KL from the SFT model, nats per response", ylabel="held-out score")
    grid[0, 0].legend(fontsize="small")
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--store", type=Path, required=True, help="folder of the artifact store")
    parser.add_argument("--data", type=Path, required=True, help="folder of the shared test data")
    arguments = parser.parse_args()
    lines = []
    for world in WORLDS:
        for seed in SEEDS:
            lines.append(vet(world, seed, arguments.store.absolute(), arguments.data.absolute()))
            print(lines[-1], flush=True)
    RESULT.write_text(table(lines), encoding="utf-8")
    draw(lines, PICTURE)


if __name__ == "__main__":
    main()
