"""`align export`: write a trained model in a format that other tools load."""

from pathlib import Path
from typing import Annotated

import typer

from alignment_core.export.target_names import Target
from alignment_flows.cli.command import AsJson, Model, command, warnings_last
from alignment_flows.cli.store import STORE, Store


def add_to(app: typer.Typer) -> None:
    """Add the command to `align`."""
    app.command("export")(export)


@command
def export(
    model: Model,
    to: Annotated[Target, typer.Option("--to", help="Export format.")],
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Folder to create. Not for hub.")] = None,
    repo: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Hub repository. Only for hub.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Create the Hub repository as private.")] = False,
    quantize: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Also write a quantized file, such as Q4_K_M. Only for gguf.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that the base model brings along. Read it first.")
    ] = False,
    store: Store = STORE,
    as_json: AsJson = False,
) -> None:
    """Export a trained model for other tools, and compare the export with the trained model."""
    from alignment_flows import api
    from alignment_flows.cli.show.export import show_export

    with warnings_last():
        exported = api.export(
            model, to, out, repo=repo, private=private, quantize=quantize, store=store, trust_remote_code=trust
        )
        show_export(exported, as_json=as_json)
