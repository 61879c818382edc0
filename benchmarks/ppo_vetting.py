"""PPO with its defaults on two worlds and five seeds: does the held-out reward rise, and what does it cost in KL?

python benchmarks/ppo_vetting.py --store STORE --data SHARED_DATA

builds the chain (SFT, reward model, PPO; in the demo's world all of it for every seed), and writes
`benchmarks/results/ppo_vetting.md` and `docs/optimizers/ppo-vetting.svg`. What is in the store already is not built
again. Nothing of the optimizer is set but the length of a response, which is the world's.
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
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_core.stages.base import StageCall
from alignment_core.stages.build import Built, build
from alignment_core.stages.plan import VERSIONS, make_plan
from alignment_flows.demo import demo_config, world_call

ROOT = Path(__file__).resolve().parent.parent
RESULT, PICTURE = ROOT / "benchmarks/results/ppo_vetting.md", ROOT / "docs/optimizers/ppo-vetting.svg"
SEEDS = range(5)
COLUMNS = (
    "world", "seed", "prompts", "SFT's score", "PPO's score", "gain, lower 95 %", "KL, nats", "length", "kept after",
    "true rule, %", "warnings",
)  # fmt: skip


@dataclass(frozen=True)
class Vetted:
    """One run of PPO with its defaults.

    Attributes:
        world: `demo` or `stories260k`.
        seed: of PPO, and in the demo's world of the whole chain before it.
        prompts: held-out prompts that played no part in choosing the policy that was kept.
        before, after: the reward model's mean score of the SFT model's and the aligned model's responses to them.
        lower: lower bound of the gain's 95 % interval, by prompt.
        kl: KL from the SFT model in nats per response.
        ceiling: the KL at which training would have stopped.
        length: tokens of a response, before and after.
        kept: after how many rollouts the policy that was kept was made.
        rule: share of good responses by the world's true rule, before and after; None where there is none.
        curve: rollouts, held-out score and held-out KL at each measurement of the training.
        warnings: what the training warned of.
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
    """The same stage with another seed than the stages before it."""
    config, parents = call.config | {"seed": seed}, call.parents | parents
    key = key_of(stage=call.stage, version=VERSIONS[call.stage], config=config, parents=parents)
    return call.model_copy(update={"config": config, "parents": parents, "key": key})


def demo(store: Path, data: Path, seed: int) -> dict[str, Any]:
    """The demo's world: a reward model on noisy comparisons made by a rule that is known."""
    world = build(inline(world_call(store, seed)), Silent()).artifact.path
    settings = demo_config(world, store, seed, "ppo").model_dump(mode="json")
    return settings | {"optimizer": {"name": "ppo", "max_new_tokens": 40}}


def stories(store: Path, data: Path, seed: int) -> dict[str, Any]:
    """A real tiny model and people's pairs: whether a kind person would say a sentence. One reward model for all."""
    os.environ["ALIGN_SHARED_DATA"] = str(data)
    settings = load_config(ROOT / "deployments/configs/ppo-stories260k.yaml").model_dump(mode="json")
    settings["model"] |= {"load_in": "fp32", "chat_template": str(ROOT / "deployments/configs/stories260k.jinja")}
    settings["data"]["held_out_fraction"] = 0.3
    settings["data"]["sources"][0]["columns"]["prompt"] = "statement"  # the bare sentence: a third of the tokens
    settings["evaluation"]["max_prompts"] = 256
    return settings | {"optimizer": {"name": "ppo", "max_new_tokens": 8}, "seed": 0, "store": str(store)}


WORLDS: dict[str, Callable[[Path, Path, int], dict[str, Any]]] = {"demo": demo, "stories260k": stories}


def vet(world: str, seed: int, store: Path, data: Path) -> Vetted:
    """Build the chain of one world and seed, and measure what PPO made of it."""
    settings = WORLDS[world](store, data, seed)
    config = PipelineConfig.model_validate(settings | {"isolation": "inline"})
    registry = load_registry()
    optimizer: Any = registry.optimizer(config.optimizer)
    calls = make_plan(config, registry).calls()
    if config.seed != seed:
        calls["optimize"] = reseeded(calls["optimize"], seed, {})
        calls["evaluate"] = reseeded(calls["evaluate"], seed, {"policy": calls["optimize"].key})
    built = {name: build(call, Silent()) for name, call in calls.items()}
    history = json_lines(built["optimize"], "metrics.jsonl")
    measured = [entry for entry in history if "held_out_score" in entry]
    # The first of the held-out prompts chose the policy.
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


def json_lines(stage: Built, file: str) -> list[dict[str, Any]]:
    """One of the stage's files."""
    return [json.loads(line) for line in (stage.artifact.path / file).read_text(encoding="utf-8").splitlines()]


def table(lines: Iterable[Vetted]) -> str:
    """The result as a page."""
    packages = ("torch", "transformers", "peft")
    versions = ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)])
    page = f"""# PPO with its defaults

{datetime.date.today()}; {os.cpu_count()} cores of {platform.machine()}, no GPU; {versions}.
Made by `python benchmarks/ppo_vetting.py --store STORE --data SHARED_DATA`.
The seed is PPO's, and in the demo's world that of the whole chain before it; stories260k has one reward model for all.
Scores are the reward model's, on held-out prompts that did not choose which policy was kept.

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
    """Learning curves, and the reward against the KL that it cost."""
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
    parser.add_argument("--data", type=Path, required=True, help="folder of the real test data")
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
