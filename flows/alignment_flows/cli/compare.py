"""`align compare`: several optimizers or settings side by side."""

from pathlib import Path
from typing import Annotated

import typer

from alignment_core.errors import ConfigError
from alignment_flows.cli.command import AsJson, Changes, ConfigFile, command


def add_to(app: typer.Typer) -> None:
    """Add the command to `align`."""
    app.command("compare")(compare)


@command
def compare(
    config: ConfigFile,
    optimizers: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME,...", help="Optimizers to compare. Default: that of the config file."),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A.B=VALUE,VALUE,...",
            help="Compare values of a setting, e.g. optimizer.beta=0.05,0.1. If repeated: every combination.",
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(metavar="N", help="Number of seeds. The report then has intervals over seeds.")
    ] = 1,
    stop_losers: Annotated[
        bool,
        typer.Option("--stop-losers", help="Give no more seeds to contenders that are clearly worse than the best."),
    ] = False,
    changes: Changes = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for the report: a page and its numbers as JSON.")
    ] = Path("comparison"),
    as_json: AsJson = False,
) -> None:
    """Train several optimizers, or one with several settings, on the same SFT model and data, and write one report.

    Override a setting of one optimizer with --set kto.learning_rate=1e-4. If a contender fails, the report covers the
    others and the exit code is 1.
    """
    from alignment_flows import api
    from alignment_flows.cli.show.comparison import show_comparison

    names = [name.strip() for name in (optimizers or "").split(",") if name.strip()]
    if not (names or grid or seeds > 1):
        raise ConfigError(
            "nothing to compare is given", where="align compare", do="Add --optimizers, --grid or --seeds"
        )
    common = [change for change in changes or () if change.partition(".")[0] not in names]
    settings = api.load_settings(config, common)
    comparison = api.compare(settings, names, changes or (), out, grid=grid or (), seeds=seeds, stop_losers=stop_losers)
    show_comparison(comparison, out, config, as_json=as_json)
    if any(run.error for run in comparison.runs):
        raise typer.Exit(1)
