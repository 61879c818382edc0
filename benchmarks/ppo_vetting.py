"""Run PPO with its defaults in two worlds with five seeds, and measure the held-out reward and the KL it costs.

python benchmarks/ppo_vetting.py --store STORE --data SHARED_DATA

Builds the chain (SFT, reward model, PPO) and writes `benchmarks/results/ppo_vetting.md` and
`docs/optimizers/ppo-vetting.svg`. In the demo world, the complete chain is built for every seed. Cached stages are
reused. The only optimizer setting that is changed is the response length, which depends on the world.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from alignment_core.artifacts import key_of
from alignment_core.config import PipelineConfig
from alignment_core.config_file import load_config
from alignment_core.execution.build import StageResult, build
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


@dataclass(frozen=True)
class Vetted:
    """One run of PPO with its defaults.

    Attributes:
        world: `demo` or `stories260k`.
        seed: seed of PPO, and in the demo world of the complete chain before it.
        prompts: number of held-out prompts that were not used to select the policy.
        before, after: the reward model's mean score of the SFT model's and of the aligned model's responses to them.
        lower: lower bound of the gain's 95 % interval, by prompt.
        kl: KL from the SFT model in nats per response.
        ceiling: the KL at which training would have stopped.
        length: mean tokens of a response, before and after.
        kept: number of rollouts after which the kept policy was saved.
        rule: share of good responses by the world's true rule, before and after; None if the world has no such rule.
        curve: rollouts, held-out score and held-out KL at each measurement during training.
        warnings: the warnings of the training.
    """

    world: str
    seed: int
    prompts: int
    before: float
    after: float
    lower: float
    kl: float
    ceiling: float
    length: tuple[float, float]
    kept: int
    rule: tuple[float, float] | None
    curve: list[tuple[int, float, float]]
    warnings: list[str]


def inline(call: StageCall) -> StageCall:
    return call.model_copy(update={"runtime": call.runtime.model_copy(update={"isolation": "inline"})})


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
    # The first held-out prompts were used to select the policy.
    before, after = (
        json_lines(built[name], "responses.jsonl")[optimizer.held_out_prompts :]
        for name in ("evaluate_sft", "evaluate")
    )
    gains = [now["reward"] - then["reward"] for then, now in zip(before, after, strict=True)]
    rule = None
    if "wordlist" in after[0]:
        rule = fmean(line["wordlist"] for line in before), fmean(line["wordlist"] for line in after)
    places = [min(i * optimizer.held_out_every, optimizer.rollouts) for i in range(len(measured))]
    return Vetted(
        world=world,
        seed=seed,
        prompts=len(gains),
        before=fmean(line["reward"] for line in before),
        after=fmean(line["reward"] for line in after),
        lower=fmean(gains) - 1.96 * stdev(gains) / math.sqrt(len(gains)),
        kl=built["evaluate"].metrics["kl"],
        ceiling=optimizer.kl_ceiling,
        length=(built["evaluate_sft"].metrics["response_length"], built["evaluate"].metrics["response_length"]),
        kept=round(measured[-1]["kept_after_rollout"]),
        rule=rule,
        curve=[(p, e["held_out_score"], e["held_out_kl"]) for p, e in zip(places, measured, strict=True)],
        warnings=built["optimize"].metrics["warnings"],
    )


def json_lines(stage: StageResult, file: str) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file in the stage's artifact."""
    return [json.loads(line) for line in (stage.artifact.path / file).read_text(encoding="utf-8").splitlines()]


def table(lines: Iterable[Vetted]) -> str:
    """Return the results page."""
    packages = ("torch", "transformers", "peft")
    versions = ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)])
    page = f"""# PPO with default settings

{datetime.date.today()}; {os.cpu_count()} cores of {platform.machine()}, no GPU; {versions}.
Made by `python benchmarks/ppo_vetting.py --store STORE --data SHARED_DATA`.
The seed applies to PPO, and in the demo world to the complete chain before it. On stories260k, all seeds share one
reward model. Scores are from the reward model, on held-out prompts that were not used to select the policy.

| {" | ".join(COLUMNS)} |
|{" --- |" * len(COLUMNS)}
"""
    for line in lines:
        rule = "–" if line.rule is None else f"{100 * line.rule[0]:.1f} → {100 * line.rule[1]:.1f}"
        cells = (
            line.world,
            str(line.seed),
            str(line.prompts),
            f"{line.before:.3f}",
            f"{line.after:.3f}",
            f"{line.after - line.before:.3f}, {line.lower:.3f}",
            f"{line.kl:.2f} of {line.ceiling:g}",
            f"{line.length[0]:.1f} → {line.length[1]:.1f}",
            f"{line.kept} rollouts",
            rule,
            "; ".join(line.warnings) or "none",
        )
        page += f"| {' | '.join(cells)} |\n"
    return page


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
