"""`align export`: a trained model for whoever uses it."""

from pathlib import Path
from typing import Annotated

import typer

from alignment_core.export.exporting import Target
from alignment_flows.cli_store import STORE, Store
from alignment_flows.command import AsJson, command


def add_to(app: typer.Typer) -> None:
    """Add the command to `align`."""
    app.command("export")(export)


@command
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A key, the beginning of one, an alias, or `latest`.")],
    to: Annotated[Target, typer.Option("--to", help="Who will use it.")],
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The new folder; not for the hub.")] = None,
    repo: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Repository of the hub.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new hub repository private.")] = False,
    store: Store = STORE,
    as_json: AsJson = False,
) -> None:
    """Write a trained model in the form that others load, compared with what was trained."""
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.artifacts.catalogue import PROMOTABLE, resolve
    from alignment_core.export.exporting import Request
    from alignment_core.export.exporting import export as export_model
    from alignment_flows.show_export import show_export

    key = resolve(ArtifactStore(store), model, PROMOTABLE).artifact.key
    place = None if out is None else out.absolute()
    request = Request(store=store.absolute(), key=key, target=to, place=place, repo=repo, private=private)
    show_export(export_model(request), as_json=as_json)
