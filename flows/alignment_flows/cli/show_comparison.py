"""Output of `align compare`."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from alignment_core.outcome.sentences import percent_range
from alignment_flows.cli.show_run import print_json, show_commands, show_sentence
from alignment_flows.reports.comparison import START, Comparison
from alignment_flows.reports.comparison_page import DASH, HTML, columns, cost
from alignment_flows.reports.model_charts import judge_name
from alignment_flows.reports.result import best_of, steps_after
from alignment_flows.reports.seed_results import OverSeeds, interval


def show_comparison(comparison: Comparison, folder: Path, config: Path, *, as_json: bool) -> None:
    """Print the failures, the table, the results, the path of the report, and what to do with the best model."""
    for row in comparison.rows:
        if row.error:
            print(f"{row.model} failed: {row.error}", file=sys.stderr)
    if as_json:
        print_json({"report": str((folder / HTML).absolute()), **comparison.to_json()})
        return
    sweep = comparison.over_seeds
    if sweep is not None and sweep.judge is not None:
        Console().print(_sweep_table(sweep))
        for sentence in (*sweep.remarks(), sweep.rule, sweep.meaning):
            show_sentence(sentence)
    else:
        Console().print(_table(comparison))
        for sentence in comparison.sentences():
            show_sentence(sentence)
    print(f"Report: {folder / HTML}")
    best = best_of(comparison.trained) if sweep is None else sweep.best
    if best is not None:
        print(f"Next, for {best}:")
        show_commands(steps_after(comparison.trained[best], str(config)))


def _table(comparison: Comparison) -> Table:
    heads = columns(comparison.rows)
    table = Table("model", *heads, "training time", "peak memory")
    for row in comparison.rows:
        cells = [column.get(row.model, ("failed" if row.error else DASH, "")) for column in heads.values()]
        seconds, _, memory, _ = cost(row)
        table.add_row(row.model, *("\n".join(filter(None, cell)) for cell in cells), seconds, memory)
    return table


def _sweep_table(sweep: OverSeeds) -> Table:
    """Return the contenders of a sweep, the best first, in 80 columns."""
    table = Table(
        "contender", Column(f"preferred to {START}, %", no_wrap=True), Column("minus the best", no_wrap=True), "seeds",
        caption=f"Judged by {judge_name(str(sweep.judge))}, with 95 % intervals.",
    )  # fmt: skip
    stopped = {one.model for one in sweep.stopped}
    for model in sorted(sweep.means, key=lambda model: -sweep.means[model].mean):
        mean, difference = sweep.means[model], sweep.differences.get(model)
        table.add_row(
            model,
            f"{100 * mean.mean:.0f} ({percent_range(mean.low, mean.high)})",
            "best" if difference is None else interval(difference),
            f"{mean.seeds}, stopped" if model in stopped else str(mean.seeds),
        )
    return table
