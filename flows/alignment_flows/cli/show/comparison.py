"""Output of `align compare`."""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from alignment_core.outcome.sentences import percent_range
from alignment_flows.cli.show.run import print_json, show_advice, show_next, show_sentence
from alignment_flows.reports.comparison import Comparison, Row, start_in
from alignment_flows.reports.comparison_page import DASH, HTML, columns, cost
from alignment_flows.reports.model_charts import judge_name
from alignment_flows.reports.result import best_of, result_of_run, steps_after
from alignment_flows.reports.seed_results import OverSeeds, interval

COST = ("training time", "peak memory")
LABEL, GAP = 26, 2
"""Columns of the terminal for the names of the measures at most, and between two models."""


def comparison_tables(rows: Sequence[Row], width: int) -> Iterator[Table]:
    """Yield tables with a column for each model, as many as fit beside each other, and a line for each measure."""
    measures = columns(rows)
    label = min(LABEL, max(map(len, [*measures, *COST])))
    models = {row.model: _cells(row, measures) for row in rows}
    widths = {
        name: max(len(line) for cell in (name, *cells) for line in cell.split("\n")) for name, cells in models.items()
    }
    names = list(models)
    while names:
        fitting, free = 1, width - label - GAP - widths[names[0]]
        while fitting < len(names) and (free := free - GAP - widths[names[fitting]]) >= 0:
            fitting += 1
        shown, names = names[:fitting], names[fitting:]
        table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
        table.add_column("", width=label)
        for name in shown:
            table.add_column(name, justify="right", min_width=min(widths[name], width - label - GAP))
        for place, measure in enumerate((*measures, *COST)):
            table.add_row(measure, *(models[name][place] for name in shown))
        yield table


def _cells(row: Row, measures: Mapping[str, Mapping[str, tuple[str, str]]]) -> list[str]:
    missing = ("failed" if row.error else DASH, "")
    found = [cells.get(row.model, missing) for cells in measures.values()]
    seconds, _, memory, _ = cost(row)
    return ["\n".join(filter(None, cell)) for cell in found] + [seconds, memory]


def show_comparison(comparison: Comparison, folder: Path, config: Path, *, as_json: bool) -> None:
    """Print the failures, the table, the results, the path of the report, and what to do with the best model."""
    for row in comparison.rows:
        if row.error:
            print(f"{row.model} failed: {row.error}", file=sys.stderr)
    if as_json:
        print_json({"report": str((folder / HTML).absolute()), **comparison.to_json()})
        return
    console = Console(highlight=False)
    sweep = comparison.over_seeds
    if sweep is not None and sweep.judge is not None:
        console.print(_sweep_table(sweep, start_in(comparison.rows)))
        sentences = (*sweep.remarks(), sweep.rule, sweep.meaning)
    else:
        for table in comparison_tables(comparison.rows, console.width):
            console.print(table, end="\n\n")
        sentences = tuple(comparison.sentences())
    for sentence in sentences:
        show_sentence(sentence)
    for names, one in comparison.advice():
        show_advice([one], names)
    print(f"Report: {folder / HTML}")
    best = best_of(comparison.trained) if sweep is None else sweep.best
    if best is not None:
        built = comparison.trained[best]
        show_next(steps_after(result_of_run(built), built, shlex.quote(str(config))), best)


def _sweep_table(sweep: OverSeeds, start: str) -> Table:
    """Return the contenders of a sweep, the best first, in 80 columns."""
    table = Table(
        "contender", Column(f"preferred to {start}, %", no_wrap=True), Column("minus the best", no_wrap=True), "seeds",
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
