"""`align demo`: run the demo and print its results."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from alignment_core.execution.build import StageResult
from alignment_core.planning.pipeline import Plan
from alignment_core.texts import percent
from alignment_flows.reports.demo import DemoRow, demo_lines, draw
from alignment_flows.serve.local.server import recorded_run


def run_demo(folder: Path, seed: int) -> None:
    """Run the demo in `folder`, print its table, and write `report.json` and `report.png` there.

    Raises:
        AlignmentError: a stage failed.
    """
    with recorded_run():
        from alignment_flows.demo import demo

        plans, built = demo(folder / "artifacts", seed)
    lines = demo_lines(plans, built)
    (folder / "report.json").write_text(json.dumps([asdict(line) for line in lines], indent=2) + "\n")
    draw(lines, folder / "report.png")
    _print(lines, plans, built, folder)


def _print(lines: list[DemoRow], plans: Mapping[str, Plan], built: Mapping[str, StageResult], folder: Path) -> None:
    console = Console()
    labels = {call.key: call.label.split(" · ")[0] for plan in plans.values() for call in plan.calls().values()}
    cached = [labels.get(key, "world") for key, stage in built.items() if stage.cached]
    trained = len(built) - len(cached)
    stages = "1 stage" if trained == 1 else f"{trained} stages"
    console.print(f"{stages} built, {len(cached)} cached" + (f": {', '.join(cached)}" if cached else ""))
    table = Table(
        "model", "true rule", "reward model\nagrees", "KL\nnats", "length\ntokens", "seconds", "peak\nmemory",
        title="Responses to held-out prompts, scored by the demo's true rule", title_justify="left",
    )  # fmt: skip
    for line in lines:
        table.add_row(
            line.model,
            f"{100 * line.rule:.1f}±{196 * line.rule_error:.1f} %",
            "–" if line.reward_accuracy is None else percent(line.reward_accuracy, 1),
            f"{line.kl:.2f}",
            f"{line.length:.1f}",
            f"{line.seconds:.1f}",
            "–" if line.peak_memory is None else f"{line.peak_memory / 2**20:.0f} MiB",
        )
    console.print(table)
    console.print(f"plot: {folder / 'report.png'}\nnumbers: {folder / 'report.json'}", highlight=False)
