"""`align runs`, `align promote`, `align rollback` and `align artifacts`: the artifact store and its aliases."""

from pathlib import Path
from typing import Annotated

import typer

from alignment_core.config import PipelineConfig
from alignment_flows.cli.command import AsJson, Model, command, warnings_last

Store = Annotated[Path, typer.Option(help="Folder of the artifact store.")]
Reference = Annotated[str, typer.Argument(metavar="ARTIFACT", help="As for `align promote`, or any artifact's key.")]
Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="Alias to change.")]
Reason = Annotated[str, typer.Option(help="Reason, recorded in the alias's history.")]

InRemote = Annotated[
    bool, typer.Option("--remote", help="Use the remote that the store is connected to, not the store itself.")
]

STORE: Path = PipelineConfig.model_fields["store"].default
DAYS = 86400

artifacts_app = typer.Typer(help="List, inspect, verify and prune artifacts.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add these commands to `align`."""
    app.command("promote")(promote)
    app.command("rollback")(rollback)
    app.command("runs")(runs)
    app.add_typer(artifacts_app, name="artifacts")


@command
def promote(
    model: Model,
    alias: Alias = "production",
    reason: Reason = "by hand",
    store: Store = STORE,
    as_json: AsJson = False,
) -> None:
    """Give a trained model an alias. Undo with `align rollback`.

    `latest` is promoted only if it passed the gate. Any other model is named by its run or key, and is warned about.
    """
    from alignment_flows.cli.show.store import show_change
    from alignment_flows.serve import alias_changes

    with warnings_last():
        show_change(alias, alias_changes.promote(model, alias, reason=reason, store=store), store, as_json=as_json)


@command
def rollback(
    alias: Alias = "production", reason: Reason = "by hand", store: Store = STORE, as_json: AsJson = False
) -> None:
    """Return an alias to the model that held it before the last promotion."""
    from alignment_flows.cli.show.store import show_change
    from alignment_flows.serve import alias_changes

    with warnings_last():
        show_change(alias, alias_changes.rollback(alias, reason=reason, store=store), store, as_json=as_json)


@command
def runs(store: Store = STORE, as_json: AsJson = False) -> None:
    """List the runs of a store, highest win rate first, with the settings in which they differ."""
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.outcome.leaderboard import leaderboard
    from alignment_flows.cli.show.runs import show_runs

    opened = ArtifactStore(store)
    show_runs(opened, leaderboard(opened), as_json=as_json)


@artifacts_app.command("list")
@command
def list_artifacts(
    kind: Annotated[str | None, typer.Option(help="Only artifacts of this stage, e.g. optimize.")] = None,
    remote: InRemote = False,
    store: Store = STORE,
    as_json: AsJson = False,
) -> None:
    """List all artifacts, newest first, and the history of each alias."""
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.artifacts.catalogue import catalogue, remote_catalogue
    from alignment_core.artifacts.sharing import required
    from alignment_flows.cli.show.store import show_list

    opened = ArtifactStore(store)
    found = [entry for entry, _ in remote_catalogue(opened)] if remote else catalogue(opened)
    entries = [entry for entry in found if kind in (None, entry.artifact.kind)]
    show_list(required(opened).address if remote else str(opened.root), opened, entries, as_json=as_json)


@artifacts_app.command("show")
@command
def show(artifact: Reference, store: Store = STORE, as_json: AsJson = False) -> None:
    """Show an artifact's settings, inputs, metrics, size and build time."""
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.artifacts.catalogue import resolve
    from alignment_flows.cli.show.store import show_entry

    show_entry(resolve(ArtifactStore(store), artifact), as_json=as_json)


@artifacts_app.command("lineage")
@command
def lineage(artifact: Reference, store: Store = STORE, as_json: AsJson = False) -> None:
    """Show all artifacts that an artifact was built from."""
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.artifacts.catalogue import lineage, resolve
    from alignment_flows.cli.show.store import show_lineage

    opened = ArtifactStore(store)
    key = resolve(opened, artifact).artifact.key
    show_lineage(key, lineage(opened, [key]), as_json=as_json)


@artifacts_app.command("verify")
@command
def verify(
    artifact: Annotated[
        str | None,
        typer.Argument(metavar="ARTIFACT", help="As for `align promote`, or any artifact's key. Default: all."),
    ] = None,
    remote: InRemote = False,
    store: Store = STORE,
    as_json: AsJson = False,
) -> None:
    """Compare every file with its manifest, without changing anything. Exits with code 1 if one differs."""
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.artifacts.catalogue import catalogue, remote_faults, resolve
    from alignment_flows.cli.show.store import show_faults

    opened = ArtifactStore(store)
    if remote:
        count, faults = remote_faults(opened, artifact)
    else:
        entries = catalogue(opened) if artifact is None else [resolve(opened, artifact)]
        count, faults = (
            len(entries),
            {each.artifact: fault for each in entries if (fault := opened.fault(each.artifact))},
        )
    show_faults(count, faults, as_json=as_json)
    if faults:
        raise typer.Exit(1)


@artifacts_app.command("prune")
@command
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    older_than: Annotated[
        float, typer.Option(metavar="DAYS", min=0, help="Keep artifacts that are younger than this.")
    ] = 0,
    remote: Annotated[
        bool, typer.Option("--remote", help="Prune the remote instead of the local store. Needs `--older-than`.")
    ] = False,
    store: Store = STORE,
    as_json: AsJson = False,
) -> None:
    """Remove artifacts that no alias, no rollback and no running flow needs."""
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.artifacts.prune import prune
    from alignment_core.artifacts.prune_remote import prune_remote
    from alignment_flows.cli.show.store import show_pruned

    chosen = prune_remote if remote else prune
    items = chosen(ArtifactStore(store), older_than_seconds=older_than * DAYS, dry_run=dry_run)
    show_pruned(items, dry_run=dry_run, as_json=as_json)


@artifacts_app.command("connect")
@command
def connect(
    address: Annotated[
        str, typer.Argument(metavar="ADDRESS", help="`s3://bucket/prefix`, `gs://…`, `az://…` or `file:///folder`.")
    ],
    store: Store = STORE,
) -> None:
    """Connect a store to a remote that other machines share, as a run with the setting `remote` does."""
    from alignment_core.artifacts import ArtifactStore, sharing
    from alignment_core.config.remote_address import check_remote
    from alignment_core.errors import ConfigError

    try:
        opened = ArtifactStore(store, check_remote(address))
    except ValueError as error:
        raise ConfigError("the store cannot be shared there", where="ADDRESS", got=address, do=str(error)) from error
    sharing.connect(opened)
    typer.echo(f"{opened.root} shares with {sharing.required(opened).address}")


@artifacts_app.command("push")
@command
def push(
    artifact: Annotated[
        str | None,
        typer.Argument(
            metavar="ARTIFACT",
            help="As for `align promote`, or any artifact's key. Default: whatever is still to be pushed.",
        ),
    ] = None,
    store: Store = STORE,
    as_json: AsJson = False,
) -> None:
    """Push an artifact with its ancestors to the remote, or everything that could not be pushed before."""
    from alignment_core.artifacts import ArtifactStore, sharing
    from alignment_core.artifacts.catalogue import resolve
    from alignment_flows.cli.show.store import show_pushed

    opened = ArtifactStore(store)
    remote = sharing.required(opened)
    if artifact is None:
        pushed = sharing.push_pending(opened, sharing.Logged())
    else:
        pushed = [resolve(opened, artifact).artifact.key]
        sharing.push(opened, pushed[0], sharing.Logged())
    show_pushed(remote.address, pushed, as_json=as_json)
