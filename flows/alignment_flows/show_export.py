"""What `align export` prints."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from alignment_core.export.exporting import Exported
from alignment_flows.show import print_json


def show_export(exported: Exported, *, as_json: bool) -> None:
    """Where it is, what was compared, and how it is started."""
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
    print(f"{exported.place} holds the model. To use it:")
    for command in exported.use:
        print(f"  {command}")


def _flat(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in found.items():
        words = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{words}, ")
        else:
            yield words, f"{value:.3g}" if isinstance(value, float) else str(value)
