"""Output of `align export`."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from alignment_core.export.request import Exported
from alignment_flows.cli.show.run import print_json


def show_export(exported: Exported, *, as_json: bool) -> None:
    """Print the target, the results of the comparison, and the commands that use the export."""
    if as_json:
        print_json(exported.model_dump(mode="json"))
        return
    table = Table("", "", title=f"exported to {exported.target}", title_justify="left", show_header=False)
    for name, value in _flat(exported.found):
        table.add_row(name, value)
    if table.row_count:
        Console().print(table)
    for note in exported.notes:
        print(note)
    print(f"Exported to {exported.place}. To use it:")
    for command in exported.use:
        print(f"  {command}")


def _flat(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in found.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{label}, ")
        else:
            yield label, f"{value:.3g}" if isinstance(value, float) else str(value)
