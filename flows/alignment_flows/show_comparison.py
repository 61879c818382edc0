"""What `align compare` and `align demo` print."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from alignment_flows.comparison import Comparison
from alignment_flows.comparison_page import DASH, HTML, columns, cost
from alignment_flows.show import print_json


def show_comparison(comparison: Comparison, folder: Path, *, as_json: bool) -> None:
    """The table, what failed, and where the report is."""
    for row in comparison.rows:
        if row.error:
            print(f"{row.model} failed: {row.error}", file=sys.stderr)
    if as_json:
        print_json({"report": str((folder / HTML).absolute()), **comparison.to_json()})
        return
    heads = columns(comparison.rows)
    table = Table("model", *heads, "trained in", "peak memory")
    for row in comparison.rows:
        cells = [column.get(row.model, ("failed" if row.error else DASH, "")) for column in heads.values()]
        seconds, _, memory, _ = cost(row)
        table.add_row(row.model, *("\n".join(filter(None, cell)) for cell in cells), seconds, memory)
    Console().print(table)
    print(f"report: {folder / HTML}")
