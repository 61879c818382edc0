"""Run the demo and show what came of it: a table, a picture, and the numbers as JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from alignment_core.stages.build import Built
from alignment_core.stages.plan import Plan
from alignment_core.stages.world_text import TRUE_RULE
from alignment_flows.local import prefect_at_hand

RULE = TRUE_RULE["name"]


@dataclass(frozen=True)
class Line:
    """One model of the demo.

    Attributes:
        model: `sft`, or the optimizer that made it.
        rule: share of its responses to held-out prompts that satisfy the true rule.
        rule_error: standard error of that share.
        reward_accuracy: how often the reward model orders two of its responses as the true rule does.
        kl: KL from the SFT model in nats per response.
        length: mean length of its responses in tokens.
        seconds: wall time of the stage that trained it.
        peak_memory: largest resident memory of that stage's process, bytes; None where the system does not tell.
    """

    model: str
    rule: float
    rule_error: float
    reward_accuracy: float | None
    kl: float
    length: float
    seconds: float
    peak_memory: int | None


def run_demo(folder: Path, seed: int) -> None:
    """Run the demo in `folder`, print its table, and write `report.json` and `report.png` there.

    Raises:
        AlignmentError: a stage failed.
    """
    with prefect_at_hand():
        from alignment_flows.demo import demo

        plans, built = demo(folder / "artifacts", seed)
    lines = demo_lines(plans, built)
    (folder / "report.json").write_text(json.dumps([asdict(line) for line in lines], indent=2) + "\n")
    draw(lines, folder / "report.png")
    _print(lines, plans, built, folder)


def demo_lines(plans: Mapping[str, Plan], built: Mapping[str, Built]) -> list[Line]:
    """The measured numbers of the SFT model and of each optimizer's policy."""
    first = next(iter(plans.values()))
    assert first.sft is not None
    lines = [_line("sft", built[first.sft.key], built[first.evaluate_sft.key])]
    for name, plan in plans.items():
        lines.append(_line(name, built[plan.optimize.key], built[plan.evaluate.key]))
    return lines


def _line(model: str, trained: Built, evaluated: Built) -> Line:
    metrics: dict[str, Any] = evaluated.metrics
    manifest = trained.artifact.manifest()
    share = metrics[f"{RULE}_mean"]
    return Line(
        model=model,
        rule=share,
        rule_error=math.sqrt(share * (1 - share) / metrics["prompts"]),
        reward_accuracy=metrics[f"reward_orders_as_{RULE}"],
        kl=metrics["kl"],
        length=metrics["response_length"],
        seconds=manifest.seconds,
        peak_memory=manifest.peak_memory_bytes,
    )


def draw(lines: list[Line], file: Path) -> None:
    """The true rule per model, and the true rule against the KL that it cost."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (bars, frontier) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    colours = ["0.6", "tab:blue", "tab:orange", "tab:green"]
    names = [line.model for line in lines]
    shares, errors = [100 * line.rule for line in lines], [196 * line.rule_error for line in lines]
    bars.bar(names, shares, yerr=errors, capsize=4, color=colours)
    bars.set(ylim=(0, 100), ylabel="responses that satisfy the true rule, %", title="Held-out prompts (95 % interval)")
    for line, colour, share, error in zip(lines, colours, shares, errors, strict=True):
        frontier.errorbar(line.kl, share, yerr=error, fmt="o", color=colour, capsize=4, label=line.model)
    frontier.set(ylim=(0, 100), xlabel="KL from the SFT model, nats per response", title="What it cost")
    frontier.legend(loc="lower right")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _print(lines: list[Line], plans: Mapping[str, Plan], built: Mapping[str, Built], folder: Path) -> None:
    console = Console()
    labels = {call.key: call.label.split(" · ")[0] for plan in plans.values() for call in plan.calls().values()}
    cached = [labels.get(key, "world") for key, stage in built.items() if stage.cached]
    trained = len(built) - len(cached)
    console.print(f"{trained} stages built, {len(cached)} cached" + (f": {', '.join(cached)}" if cached else ""))
    table = Table(
        "model", "true rule", "reward model\nagrees", "KL\nnats", "length\ntokens", "seconds", "peak\nmemory",
        title="Held-out prompts, judged by the true rule of the demo's world", title_justify="left",
    )  # fmt: skip
    for line in lines:
        table.add_row(
            line.model,
            f"{100 * line.rule:.1f}±{196 * line.rule_error:.1f} %",
            "–" if line.reward_accuracy is None else f"{100 * line.reward_accuracy:.1f} %",
            f"{line.kl:.2f}",
            f"{line.length:.1f}",
            f"{line.seconds:.1f}",
            "–" if line.peak_memory is None else f"{line.peak_memory / 2**20:.0f} MiB",
        )
    console.print(table)
    console.print(f"picture: {folder / 'report.png'}\nnumbers: {folder / 'report.json'}", highlight=False)
