"""The catalogue of an artifact store: listing, lookup by name or key prefix, and lineage."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alignment_core.artifacts.aliases import is_alias
from alignment_core.artifacts.layout import check_exists
from alignment_core.artifacts.manifest import Manifest
from alignment_core.artifacts.store import Artifact, ArtifactStore
from alignment_core.errors import ArtifactError

ALIGNED = "optimize"
"""Kind of the artifacts that hold an aligned model."""
PROMOTABLE = (ALIGNED, "sft")
"""Kinds of the artifacts that hold a trained model."""
LATEST = "latest"
HEXADECIMAL = re.compile(r"[0-9a-f]+")
SHOWN = 5


@dataclass(frozen=True)
class Entry:
    """One artifact of a store.

    Attributes:
        artifact: the artifact.
        manifest: its manifest; None if unreadable.
        aliases: its current aliases.
    """

    artifact: Artifact
    manifest: Manifest | None
    aliases: tuple[str, ...]

    @property
    def size(self) -> int:
        """Total size of its files in bytes."""
        return 0 if self.manifest is None else sum(record.size for record in self.manifest.files.values())

    @property
    def run(self) -> str:
        """Name of the run that built it; empty if it has none, or if the manifest is unreadable."""
        return "" if self.manifest is None else self.manifest.run

    @property
    def created(self) -> str:
        """Time of creation, ISO 8601, UTC; empty if the manifest is unreadable."""
        return "" if self.manifest is None else self.manifest.created


def catalogue(store: ArtifactStore, kinds: Iterable[str] = ()) -> list[Entry]:
    """Return the artifacts of the store, newest first.

    Args:
        store: the artifact store.
        kinds: kinds of artifacts to return; empty for all kinds. The manifests of other kinds are not read.

    Raises:
        ArtifactError: there is no store, or an alias is damaged.
    """
    check_exists(store.root)
    names: dict[str, list[str]] = {}
    for name in store.aliases.names():
        if current := store.aliases.current(name):
            names.setdefault(current.key, []).append(name)
    entries = [
        Entry(artifact, readable_manifest(artifact), tuple(names.get(artifact.key, ())))
        for artifact in store.artifacts()
        if not kinds or artifact.kind in kinds
    ]
    return sorted(entries, key=lambda entry: (entry.created, entry.artifact.key), reverse=True)


def resolve(store: ArtifactStore, reference: str, kinds: Iterable[str] = (), *, run: str | None = None) -> Entry:
    """Return the one artifact that a reference names.

    Args:
        store: the artifact store.
        reference: `latest` for the newest aligned model, an alias, the name of a run for its newest aligned model, a
            key, or a key prefix. A name that fits several of them is the first of them.
        kinds: kinds of artifacts to search by key; empty for all kinds.
        run: `latest` is the newest aligned model of this run. None: of all runs.

    Raises:
        ArtifactError: there is no store, no artifact matches, or several do.
    """
    entries = catalogue(store)
    aligned = [entry for entry in entries if entry.artifact.kind == ALIGNED and entry.manifest is not None]
    runs = list(dict.fromkeys(entry.run for entry in aligned if entry.run))
    if reference == LATEST:
        if found := [entry for entry in aligned if run in (None, entry.run)]:
            return found[0]
        raise _no_model(store, run, runs)
    by_hand = not HEXADECIMAL.fullmatch(reference)
    if by_hand and (found := _named(store, reference, entries)):
        return found[0]
    if found := [entry for entry in aligned if entry.run == reference]:
        return found[0]
    if by_hand:
        raise _unknown_name(store, reference, runs)
    return _by_key(store, reference, entries, kinds)


def _by_key(store: ArtifactStore, prefix: str, entries: Iterable[Entry], kinds: Iterable[str]) -> Entry:
    matching = [entry for entry in entries if entry.artifact.key.startswith(prefix)]
    found = [entry for entry in matching if not kinds or entry.artifact.kind in kinds]
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(f"{entry.artifact.kind}/{entry.artifact.key}" for entry in found[:SHOWN])
        raise ArtifactError(
            f"the key prefix is ambiguous: {len(found)} artifacts match",
            where=str(store.root),
            got=prefix,
            expected=f"a longer prefix of one of {some}" + (", …" if len(found) > SHOWN else ""),
        )
    others = ", ".join(sorted({entry.artifact.kind for entry in matching}))
    raise ArtifactError(
        "there is no such artifact",
        where=str(store.root),
        got=f"{prefix}, of kind {others}" if others else prefix,
        expected=f"one of kind {' or '.join(kinds)}" if kinds else None,
        do="List the artifacts with `align artifacts list`, or choose another store with `--store`",
    )


def _named(store: ArtifactStore, name: str, entries: Iterable[Entry]) -> list[Entry]:
    """Return the artifact with this alias, or nothing if there is no such alias."""
    current = store.aliases.current(name) if is_alias(name) else None
    if current is None:
        return []
    for entry in entries:
        if entry.artifact.key == current.key:
            return [entry]
    raise ArtifactError(
        f"the artifact with the alias `{name}` is no longer in the store",
        where=str(store.root),
        got=f"{current.kind}/{current.key}",
        do="Promote another model with `align promote`, or roll back with `align rollback`",
    )


def _no_model(store: ArtifactStore, run: str | None, runs: Sequence[str]) -> ArtifactError:
    if run is None or not runs:
        what, do = "there is no aligned model in this store", "Train one with `align run`, or name a model by its key"
        return ArtifactError(what, where=str(store.root), got=LATEST, do=do)
    return ArtifactError(
        f"the run `{run}` has no aligned model in this store",
        where=str(store.root),
        got=LATEST,
        expected=f"one of the runs {_some(runs)}",
        do="Name a model by its run or its key. `align runs` lists them",
    )


def _unknown_name(store: ArtifactStore, name: str, runs: Sequence[str]) -> ArtifactError:
    known = [*store.aliases.names(), *runs]
    return ArtifactError(
        "this is no alias, no run with an aligned model, and no key (hexadecimal digits)",
        where=str(store.root),
        got=name,
        expected=f"one of {_some(known)}" if known else None,
        do=None if known else "Train a model with `align run`, or choose another store with `--store`",
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def lineage(store: ArtifactStore, keys: Iterable[str]) -> dict[str, Artifact | None]:
    """Return artifacts and all their ancestors by key. The value is None if an artifact is no longer in the store."""
    there = {artifact.key: artifact for artifact in store.artifacts()}
    found: dict[str, Artifact | None] = {}
    open_keys = list(keys)
    while open_keys:
        key = open_keys.pop()
        if key not in found:
            found[key] = there.get(key)
            manifest = readable_manifest(artifact) if (artifact := found[key]) else None
            open_keys += manifest.parents.values() if manifest else ()
    return found


def readable_manifest(artifact: Artifact) -> Manifest | None:
    """Return the manifest of an artifact, or None if it cannot be read."""
    try:
        return artifact.manifest()
    except (OSError, ValueError):
        return None
