"""`align compare`: several optimizers side by side."""

from pathlib import Path
from typing import Annotated

import typer

from alignment_flows.cli.command import AsJson, Changes, ConfigFile, command


def add_to(app: typer.Typer) -> None:
    """Add the command to `align`."""
    app.command("compare")(compare)


@command
def compare(
    config: ConfigFile,
    optimizers: Annotated[str, typer.Option(metavar="NAME,NAME,...", help="Optimizers to compare.")],
    changes: Changes = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the report.")] = Path("comparison"),
    as_json: AsJson = False,
) -> None:
    """Train several optimizers on the same SFT model, reward model and data, and write one report.

    Override a setting of one optimizer with --set kto.learning_rate=1e-4. If an optimizer fails, the report covers the
    others and the exit code is 1.
    """
    from alignment_flows import api
    from alignment_flows.cli.show_comparison import show_comparison

    names = [name.strip() for name in optimizers.split(",") if name.strip()]
    common = [change for change in changes or () if change.partition(".")[0] not in names]
    comparison = api.compare(api.load_settings(config, common), names, changes or (), out)
    show_comparison(comparison, out, config, as_json=as_json)
    if any(run.error for run in comparison.runs):
        raise typer.Exit(1)
