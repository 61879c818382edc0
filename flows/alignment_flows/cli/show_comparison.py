"""Output of `align compare`."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from alignment_flows.cli.show_run import print_json, show_sentence
from alignment_flows.reports.comparison import Comparison
from alignment_flows.reports.comparison_page import DASH, HTML, columns, cost
from alignment_flows.reports.result import best_of, steps_after


def show_comparison(comparison: Comparison, folder: Path, config: Path, *, as_json: bool) -> None:
    """Print the failures, the table, the results, the path of the report, and what to do with the best model."""
    for row in comparison.rows:
        if row.error:
            print(f"{row.model} failed: {row.error}", file=sys.stderr)
    if as_json:
        print_json({"report": str((folder / HTML).absolute()), **comparison.to_json()})
        return
    heads = columns(comparison.rows)
    table = Table("model", *heads, "training time", "peak memory")
    for row in comparison.rows:
        cells = [column.get(row.model, ("failed" if row.error else DASH, "")) for column in heads.values()]
        seconds, _, memory, _ = cost(row)
        table.add_row(row.model, *("\n".join(filter(None, cell)) for cell in cells), seconds, memory)
    Console().print(table)
    for sentence in comparison.sentences():
        show_sentence(sentence)
    print(f"Report: {folder / HTML}")
    if (best := best_of(comparison.trained)) is not None:
        show_sentence(f"Next, for `{best}`: {', '.join(steps_after(comparison.trained[best], str(config)))}")
