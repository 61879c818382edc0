"""`align promote`, `align rollback` and `align artifacts`: what is in the store, under which names."""

import getpass
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignment_core.config import PipelineConfig
from alignment_flows.command import AsJson, command

if TYPE_CHECKING:
    from alignment_core.artifacts import ArtifactStore

Store = Annotated[Path, typer.Option(help="Folder of the artifact store.")]
Reference = Annotated[
    str, typer.Argument(metavar="ARTIFACT", help="A key, the beginning of one, an alias, or `latest`.")
]
Alias = Annotated[str, typer.Option(help="The name that is given.")]
Reason = Annotated[str, typer.Option(help="Why, for the alias's history.")]

STORE: Path = PipelineConfig.model_fields["store"].default
DAYS = 86400

artifacts_app = typer.Typer(help="What is in the artifact store.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add these commands to `align`."""
    app.command("promote")(promote)
    app.command("rollback")(rollback)
    app.add_typer(artifacts_app, name="artifacts")


@command
def promote(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A key, the beginning of one, an alias, or `latest`.")],
    alias: Alias = "production",
    reason: Reason = "by hand",
    store: Store = STORE,
    as_json: AsJson = False,
) -> None:
    """Give a trained model a name, `production` unless told otherwise; `align rollback` takes it back."""
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.artifacts.catalogue import promote
    from alignment_flows.show_store import show_change

    opened = ArtifactStore(store)
    change = promote(opened, model, alias, by=_person(), reason=reason)
    show_change(alias, change, as_json=as_json)
    _show_in_prefect(opened, alias)


@command
def rollback(
    alias: Alias = "production", reason: Reason = "by hand", store: Store = STORE, as_json: AsJson = False
) -> None:
    """Give a name back to the model that had it before the last promotion."""
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.artifacts.catalogue import roll_back
    from alignment_flows.show_store import show_change

    opened = ArtifactStore(store)
    change = roll_back(opened, alias, by=_person(), reason=reason)
    show_change(alias, change, as_json=as_json)
    _show_in_prefect(opened, alias)


@artifacts_app.command("list")
@command
def list_artifacts(
    kind: Annotated[str | None, typer.Option(help="Only what this stage made, e.g. optimize.")] = None,
    store: Store = STORE,
    as_json: AsJson = False,
) -> None:
    """List every artifact, the newest first, and the history of every alias."""
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.artifacts.catalogue import catalogue
    from alignment_flows.show_store import show_list

    opened = ArtifactStore(store)
    entries = [entry for entry in catalogue(opened) if kind in (None, entry.artifact.kind)]
    show_list(opened, entries, as_json=as_json)


@artifacts_app.command("show")
@command
def show(artifact: Reference, store: Store = STORE, as_json: AsJson = False) -> None:
    """Show what decided an artifact, what it cost, what was measured, and its files."""
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.artifacts.catalogue import resolve
    from alignment_flows.show_store import show_entry

    show_entry(resolve(ArtifactStore(store), artifact), as_json=as_json)


@artifacts_app.command("lineage")
@command
def lineage(artifact: Reference, store: Store = STORE, as_json: AsJson = False) -> None:
    """Show everything that an artifact is made from."""
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.artifacts.catalogue import lineage, resolve
    from alignment_flows.show_store import show_lineage

    opened = ArtifactStore(store)
    key = resolve(opened, artifact).artifact.key
    show_lineage(key, lineage(opened, [key]), as_json=as_json)


@artifacts_app.command("verify")
@command
def verify(
    artifact: Annotated[str | None, typer.Argument(metavar="[ARTIFACT]", help="One of them; all unless given.")] = None,
    store: Store = STORE,
    as_json: AsJson = False,
) -> None:
    """Compare every file with the manifests. Exit code 1 if one differs; nothing is changed."""
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.artifacts.catalogue import catalogue, resolve
    from alignment_flows.show_store import show_faults

    opened = ArtifactStore(store)
    entries = catalogue(opened) if artifact is None else [resolve(opened, artifact)]
    faults = {entry.artifact: fault for entry in entries if (fault := opened.fault(entry.artifact))}
    show_faults(len(entries), faults, as_json=as_json)
    if faults:
        raise typer.Exit(1)


@artifacts_app.command("prune")
@command
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    older_than: Annotated[float, typer.Option(metavar="DAYS", min=0, help="Leave what is younger.")] = 0,
    store: Store = STORE,
    as_json: AsJson = False,
) -> None:
    """Remove what no alias, no run in progress and nothing that they are made from needs."""
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.artifacts.prune import prune
    from alignment_flows.show_store import show_pruned

    items = prune(ArtifactStore(store), older_than_seconds=older_than * DAYS, dry_run=dry_run)
    show_pruned(items, dry_run=dry_run, as_json=as_json)


def _show_in_prefect(store: "ArtifactStore", alias: str) -> None:
    """Bring the alias's page up to date, if there is a server that keeps it."""
    from alignment_flows.services import running_server

    if (api := os.environ.get("PREFECT_API_URL") or running_server()) is None:
        return
    import httpx

    from alignment_flows.local import quieten_prefect

    quieten_prefect()
    from alignment_flows.promotion import send_history

    try:
        send_history(store, alias, api)
    except httpx.HTTPError as error:
        typer.echo(f"align: not shown in Prefect: {error}", err=True)


def _person() -> str:
    """Who is at the keyboard."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
