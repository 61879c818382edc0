"""The results of the demo as numbers and as a plot."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment_core.execution.build import StageResult
from alignment_core.planning.pipeline import Plan
from alignment_core.stages.shared.demo_texts import TRUE_RULE

RULE = TRUE_RULE["name"]


@dataclass(frozen=True)
class DemoRow:
    """One model of the demo.

    Attributes:
        model: `sft`, or the optimizer that trained it.
        rule: share of its responses to held-out prompts that satisfy the true rule.
        rule_error: standard error of that share.
        reward_accuracy: how often the reward model orders two of its responses in the same way as the true rule.
        kl: KL from the SFT model in nats per response.
        length: mean length of its responses in tokens.
        seconds: wall time of the stage that trained it.
        peak_memory: largest resident memory of that stage's process, in bytes; None if the system does not report it.
    """

    model: str
    rule: float
    rule_error: float
    reward_accuracy: float | None
    kl: float
    length: float
    seconds: float
    peak_memory: int | None


def demo_lines(plans: Mapping[str, Plan], built: Mapping[str, StageResult]) -> list[DemoRow]:
    """Return the results of the SFT model and of each optimizer's policy."""
    first = next(iter(plans.values()))
    assert first.sft is not None
    lines = [_line("sft", built[first.sft.key], built[first.evaluate_sft.key])]
    for name, plan in plans.items():
        lines.append(_line(name, built[plan.optimize.key], built[plan.evaluate.key]))
    return lines


def _line(model: str, trained: StageResult, evaluated: StageResult) -> DemoRow:
    metrics: dict[str, Any] = evaluated.metrics
    manifest = trained.artifact.manifest()
    share = metrics[f"{RULE}_mean"]
    return DemoRow(
        model=model,
        rule=share,
        rule_error=math.sqrt(share * (1 - share) / metrics["prompts"]),
        reward_accuracy=metrics[f"reward_orders_as_{RULE}"],
        kl=metrics["kl"],
        length=metrics["response_length"],
        seconds=manifest.seconds,
        peak_memory=manifest.peak_memory_bytes,
    )


def draw(lines: list[DemoRow], file: Path) -> None:
    """Plot the share that satisfies the true rule per model and against KL."""
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
    frontier.set(ylim=(0, 100), xlabel="KL from the SFT model, nats per response", title="True rule against KL")
    frontier.legend(loc="lower right")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
