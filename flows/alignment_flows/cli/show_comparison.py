"""Output of `align compare`."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from alignment_flows.cli.show_run import print_json
from alignment_flows.reports.comparison import Comparison
from alignment_flows.reports.comparison_page import DASH, HTML, columns, cost


def show_comparison(comparison: Comparison, folder: Path, *, as_json: bool) -> None:
    """Print the failures, the table and the path of the report."""
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
    print(f"report: {folder / HTML}")
