"""`align compare`: several optimizers side by side."""

from pathlib import Path
from typing import Annotated

import typer

from alignment_flows.command import AsJson, Changes, ConfigFile, command


def add_to(app: typer.Typer) -> None:
    """Add the command to `align`."""
    app.command("compare")(compare)


@command
def compare(
    config: ConfigFile,
    optimizers: Annotated[str, typer.Option(metavar="NAME,NAME,...", help="Installed optimizers.")],
    changes: Changes = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the report.")] = Path("comparison"),
    as_json: AsJson = False,
) -> None:
    """Train with several optimizers on the same SFT model, reward model and data, and report on all side by side.

    One optimizer's setting: --set kto.learning_rate=1e-4. Exit code 1 if one failed; the report is on the others.
    """
    from alignment_core.config_file import load_config
    from alignment_flows.local import run_comparison
    from alignment_flows.show_comparison import show_comparison

    names = [name.strip() for name in optimizers.split(",") if name.strip()]
    common = [change for change in changes or () if change.partition(".")[0] not in names]
    comparison = run_comparison(load_config(config, common), names, changes or (), out)
    show_comparison(comparison, out, as_json=as_json)
    if any(contender.error for contender in comparison.contenders):
        raise typer.Exit(1)
