"""The data report in a terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alignment_core.markdown import unmarked
from alignment_flows.cli.show.run import print_json

PIPE_WIDTH = 160
"""Width of the tables where the output is not a terminal."""


def show_data(report: Mapping[str, Any], out: Path | None, *, as_json: bool) -> None:
    """Print the report on a source of feedback, and where its page is.

    Args:
        report: the report.
        out: the file or the folder that it was written to.
        as_json: print JSON instead.
    """
    if as_json:
        print_json(report)
        return
    from alignment_core.data.ingestion.check import is_page
    from alignment_core.data.ingestion.report.page import short
    from alignment_core.data.ingestion.report.tables import tables
    from alignment_core.data.ingestion.report.used import used_line

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    console.print(f"[bold]{used_line(report['used']).capitalize()}.[/]")
    for warning in report["warnings"]:
        console.print(f"[yellow]Warning:[/] {escape(unmarked(warning))}", soft_wrap=True)
    folder = out is not None and not is_page(out)
    for table in tables(report, files=folder):
        shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for name, cell in zip(table.head, table.rows[0], strict=True):
            shown.add_column(name, justify="right" if isinstance(cell, int) else "left", overflow="fold")
        for row in table.rows:
            shown.add_row(*(escape(str(cell)) for cell in row))
        console.print()
        console.print(shown)
        if table.note:
            console.print(table.note, soft_wrap=True)
    for sample in report["samples"]:
        console.print(f"\n[bold]{sample['kind']}[/], {escape(sample['origin'])} (targets are marked)", soft_wrap=True)
        parts = (
            f"[green]⟦{escape(short(run['text']))}⟧[/]" if run["target"] else escape(short(run["text"]))
            for run in sample["runs"]
        )
        console.print("".join(parts), soft_wrap=True)
    if out is None:
        console.print("\nTo see this as a page with plots: align data check … --out report.html", soft_wrap=True)
    else:
        console.print(f"\nReport: {escape(str(out / 'report.html' if folder else out))}", soft_wrap=True)
