"""`align runs`, `align promote`, `align rollback` and `align artifacts`: the artifact store and its aliases."""

from pathlib import Path
from typing import Annotated

import typer

from alignment_core.config import PipelineConfig
from alignment_flows.cli.command import AsJson, Model, command, warnings_last

Store = Annotated[Path, typer.Option(help="Folder of the artifact store.")]
Reference = Annotated[str, typer.Argument(metavar="ARTIFACT", help="As for `align promote`, or any artifact's key.")]
Alias = Annotated[str, typer.Option(help="Alias to change.")]
Reason = Annotated[str, typer.Option(help="Reason, recorded in the alias's history.")]

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
    from alignment_flows.cli.show_store import show_change
    from alignment_flows.serve import alias_changes

    with warnings_last():
        show_change(alias, alias_changes.promote(model, alias, reason=reason, store=store), as_json=as_json)


@command
def rollback(
    alias: Alias = "production", reason: Reason = "by hand", store: Store = STORE, as_json: AsJson = False
) -> None:
    """Return an alias to the model that held it before the last promotion."""
    from alignment_flows.cli.show_store import show_change
    from alignment_flows.serve import alias_changes

    with warnings_last():
        show_change(alias, alias_changes.rollback(alias, reason=reason, store=store), as_json=as_json)


@command
def runs(store: Store = STORE, as_json: AsJson = False) -> None:
    """List the runs of a store, those with the highest win rate first, with the settings in which they differ."""
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.outcome.leaderboard import leaderboard
    from alignment_flows.cli.show_runs import show_runs

    opened = ArtifactStore(store)
    show_runs(opened, leaderboard(opened), as_json=as_json)


@artifacts_app.command("list")
@command
def list_artifacts(
    kind: Annotated[str | None, typer.Option(help="Only artifacts of this stage, e.g. optimize.")] = None,
    store: Store = STORE,
    as_json: AsJson = False,
) -> None:
    """List all artifacts, newest first, and the history of each alias."""
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.artifacts.catalogue import catalogue
    from alignment_flows.cli.show_store import show_list

    opened = ArtifactStore(store)
    entries = [entry for entry in catalogue(opened) if kind in (None, entry.artifact.kind)]
    show_list(opened, entries, as_json=as_json)


@artifacts_app.command("show")
@command
def show(artifact: Reference, store: Store = STORE, as_json: AsJson = False) -> None:
    """Show an artifact's settings, inputs, metrics, size and build time."""
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.artifacts.catalogue import resolve
    from alignment_flows.cli.show_store import show_entry

    show_entry(resolve(ArtifactStore(store), artifact), as_json=as_json)


@artifacts_app.command("lineage")
@command
def lineage(artifact: Reference, store: Store = STORE, as_json: AsJson = False) -> None:
    """Show all artifacts that an artifact was built from."""
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.artifacts.catalogue import lineage, resolve
    from alignment_flows.cli.show_store import show_lineage

    opened = ArtifactStore(store)
    key = resolve(opened, artifact).artifact.key
    show_lineage(key, lineage(opened, [key]), as_json=as_json)


@artifacts_app.command("verify")
@command
def verify(
    artifact: Annotated[
        str | None,
        typer.Argument(metavar="[ARTIFACT]", help="As for `align promote`, or any artifact's key. Default: all."),
    ] = None,
    store: Store = STORE,
    as_json: AsJson = False,
) -> None:
    """Compare every file with its manifest, without changing anything. Exits with code 1 if one differs."""
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.artifacts.catalogue import catalogue, resolve
    from alignment_flows.cli.show_store import show_faults

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
    older_than: Annotated[float, typer.Option(metavar="DAYS", min=0, help="Keep anything younger.")] = 0,
    store: Store = STORE,
    as_json: AsJson = False,
) -> None:
    """Remove artifacts that no alias and no running flow needs."""
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.artifacts.prune import prune
    from alignment_flows.cli.show_store import show_pruned

    items = prune(ArtifactStore(store), older_than_seconds=older_than * DAYS, dry_run=dry_run)
    show_pruned(items, dry_run=dry_run, as_json=as_json)
