"""Output of the artifact store commands: tables, or one JSON object."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from alignment_core.artifacts import Artifact, ArtifactStore, Change, Manifest
from alignment_core.artifacts.aliases import PRODUCTION
from alignment_core.artifacts.catalogue import Entry, readable_manifest
from alignment_core.artifacts.prune import Unneeded
from alignment_core.outcome.names import name_of
from alignment_flows.cli.show.run import KEY_DIGITS, print_json, readable_size


def show_change(alias: str, change: Change, store: Path, *, as_json: bool) -> None:
    """Print the artifact of a store that an alias now points to."""
    if as_json:
        print_json({"alias": alias, **change.model_dump()})
        return
    before = f" (previously {change.previous})" if change.previous else ""
    name = _promoted(ArtifactStore(store), change)
    print(f"{alias} is now {change.kind}/{change.key}{f', {name}' if name else ''}{before}")
    if change.action == "promote" and change.previous:
        named = "" if alias == PRODUCTION else f" {alias}"
        print(f"Undo with: align rollback{named} --store {shlex.quote(str(store))}")


def _promoted(store: ArtifactStore, change: Change) -> str:
    manifest = readable_manifest(Artifact(change.kind, change.key, str(store.root / change.kind / change.key)))
    return "" if manifest is None else name_of(manifest)


def show_list(place: str, store: ArtifactStore, entries: Sequence[Entry], *, as_json: bool) -> None:
    """Print the artifacts of a store or of its remote, which is at `place`, and the history of each alias."""
    histories = {name: store.aliases.history(name) for name in store.aliases.names()}
    if as_json:
        aliases = {name: [change.model_dump() for change in history] for name, history in histories.items()}
        print_json({"store": place, "artifacts": [_described(entry) for entry in entries], "aliases": aliases})
        return
    print(place)
    # A table of rich takes seconds for thousands of artifacts.
    for line in aligned([("artifact", "name", "alias", "created", "size"), *map(_listed, entries)]):
        print(line)
    console = Console()
    for name, history in histories.items():
        changes = Table(name, "artifact", "time", "by", "reason", title_justify="left")
        for change in reversed(history):
            artifact = f"{change.kind}/{change.key[:KEY_DIGITS]}…"
            changes.add_row(change.action, artifact, _clock(change.time), escape(change.by), escape(change.reason))
        console.print(changes)


def _listed(entry: Entry) -> tuple[str, ...]:
    artifact = f"{entry.artifact.kind}/{entry.artifact.key[:KEY_DIGITS]}…"
    made = _clock(entry.created) if entry.created else "unreadable manifest"
    return artifact, _title(entry), ", ".join(entry.aliases), made, readable_size(entry.size)


def _clock(time: str) -> str:
    """Return a time in ISO 8601 as the clock of this machine shows it."""
    return f"{datetime.fromisoformat(time).astimezone():%Y-%m-%d %H:%M}"


def _title(entry: Entry) -> str:
    return "" if entry.manifest is None else name_of(entry.manifest)


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the rows as lines in which the columns start at the same place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def show_entry(entry: Entry, *, as_json: bool) -> None:
    """Print an artifact's manifest."""
    if as_json:
        files = {} if entry.manifest is None else entry.manifest.model_dump(mode="json")
        print_json({**_described(entry), "manifest": files})
        return
    console = Console()
    table = Table("fact", "value", title=f"{entry.artifact.kind}/{entry.artifact.key}", title_justify="left")
    for name, value in _facts(entry):
        table.add_row(name, escape(value))
    console.print(table)


def _facts(entry: Entry) -> Iterator[tuple[str, str]]:
    yield "folder", entry.artifact.uri
    if entry.aliases:
        yield "alias", ", ".join(entry.aliases)
    manifest = entry.manifest
    if manifest is None:
        yield "manifest", "unreadable"
        return
    yield "created", f"{_clock(manifest.created)}, built in {manifest.seconds:.1f} s"
    files = "1 file" if len(manifest.files) == 1 else f"{len(manifest.files)} files"
    yield "size", f"{readable_size(entry.size)} in {files}"
    yield from _flat({"parents": manifest.parents, "metrics": manifest.metrics})
    yield from _flat({"settings": manifest.config, "inputs": manifest.inputs})


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", f"{value:.6g}" if isinstance(value, float) else str(value)


def show_lineage(key: str, found: Mapping[str, Artifact | None], *, as_json: bool) -> None:
    """Print the artifacts that an artifact was built from as a tree. A shared parent appears under each child."""
    manifests = {key: None if artifact is None else readable_manifest(artifact) for key, artifact in found.items()}
    if as_json:
        artifacts = [
            {
                "key": key,
                "kind": None if artifact is None else artifact.kind,
                "uri": None if artifact is None else artifact.uri,
                "parents": {} if (manifest := manifests[key]) is None else manifest.parents,
            }
            for key, artifact in found.items()
        ]
        print_json({"key": key, "artifacts": artifacts})
        return
    tree = Tree(_name(key, found))
    _grow(tree, key, found, manifests)
    Console().print(tree)


def _grow(tree: Tree, key: str, found: Mapping[str, Artifact | None], manifests: Mapping[str, Manifest | None]) -> None:
    manifest = manifests[key]
    for role, parent in ({} if manifest is None else manifest.parents).items():
        _grow(tree.add(f"{role}: {_name(parent, found)}"), parent, found, manifests)


def _name(key: str, found: Mapping[str, Artifact | None]) -> str:
    artifact = found[key]
    return f"{key} (no longer in the store)" if artifact is None else f"{artifact.kind}/{key}"


def show_faults(count: int, faults: Mapping[Artifact, str], *, as_json: bool) -> None:
    """Print the artifacts whose files do not match their manifests."""
    if as_json:
        damaged = [{"kind": artifact.kind, "key": artifact.key, "fault": fault} for artifact, fault in faults.items()]
        print_json({"verified": count, "damaged": damaged})
        return
    for artifact, fault in faults.items():
        print(f"{artifact.kind}/{artifact.key}: {fault}")
    artifacts = "1 artifact matches its manifest" if count == 1 else f"{count} artifacts match their manifests"
    print(f"{count - len(faults)} of {artifacts}.")


def show_pushed(address: str, keys: Sequence[str], *, as_json: bool) -> None:
    """Print what a remote now holds."""
    if as_json:
        print_json({"remote": address, "pushed": list(keys)})
        return
    for key in keys:
        print(key)
    print(f"{'1 artifact is' if len(keys) == 1 else f'{len(keys)} artifacts are'} now in {address}.")


def show_pruned(items: Sequence[Unneeded], *, dry_run: bool, as_json: bool) -> None:
    """Print what was removed, or would be."""
    size = sum(item.size for item in items)
    if as_json:
        removed = [{"what": item.what, "name": item.name, "bytes": item.size} for item in items]
        print_json({"dry_run": dry_run, "bytes": size, "removed": removed})
        return
    for item in items:
        print(f"{item.name}: {item.what}, {readable_size(item.size)}")
    pages = sum(item.what == "report" for item in items)
    what = _counted(len(items) - pages, "folder") + (f" and {_counted(pages, 'report')}" if pages else "")
    print(f"{'Would remove' if dry_run else 'Removed'} {what}, {readable_size(size)}.")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _described(entry: Entry) -> dict[str, Any]:
    artifact = entry.artifact
    return {
        "kind": artifact.kind,
        "key": artifact.key,
        "name": _title(entry),
        "uri": artifact.uri,
        "aliases": list(entry.aliases),
        "created": entry.created,
        "bytes": entry.size,
    }
