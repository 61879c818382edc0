"""The catalogue of an artifact store: listing, lookup by name or key prefix, and lineage."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alignment_core.artifacts.alias_history import is_alias
from alignment_core.artifacts.layout import check_exists
from alignment_core.artifacts.manifest import Manifest, with_ancestors
from alignment_core.artifacts.remote.remote import Published
from alignment_core.artifacts.sharing import Logged, obtain_lineage, required
from alignment_core.artifacts.store import KEY, Artifact, ArtifactStore
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
    _check_there(store)
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


def remote_catalogue(store: ArtifactStore) -> list[tuple[Entry, Published]]:
    """Return every artifact in the remote of a store, newest first, each with what the remote holds of it.

    Raises:
        ArtifactError: the store has no remote, or it cannot be used.
    """
    remote = required(store)
    found = []
    for published in remote.artifacts():
        kind = published.manifest.kind if published.manifest else "damaged"
        artifact = Artifact(kind, published.key, f"{remote.address}/{published.folder}")
        found.append((Entry(artifact, published.manifest, tuple(store.aliases.of(published.key))), published))
    return found


def remote_faults(store: ArtifactStore, reference: str | None) -> tuple[int, dict[Artifact, str]]:
    """Read every file of the artifacts in the remote of a store, or of one of them. Nothing is changed.

    Args:
        store: the store.
        reference: an alias, a key or a key prefix. None: all.

    Returns:
        The number of artifacts, and what is wrong with the damaged ones.

    Raises:
        ArtifactError: the store has no remote, or it cannot be used, or it has no such artifact.
    """
    prefix = reference or ""
    if reference is not None and not HEXADECIMAL.fullmatch(reference) and (named := store.aliases.current(reference)):
        prefix = named.key
    chosen = [(entry, published) for entry, published in remote_catalogue(store) if published.key.startswith(prefix)]
    if reference is not None and not chosen:
        raise ArtifactError("the remote has no such artifact", where=required(store).address, got=reference)
    faults = {entry.artifact: required(store).fault(published, Logged()) for entry, published in chosen}
    return len(chosen), {artifact: fault for artifact, fault in faults.items() if fault}


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
    if store.remote is not None and KEY.fullmatch(reference) and store.find(reference) is None:
        obtain_lineage(store, reference, Logged())
    entries = catalogue(store)
    aligned = [entry for entry in entries if entry.artifact.kind == ALIGNED and entry.manifest is not None]
    runs = list(dict.fromkeys(entry.run for entry in aligned if entry.run))
    if reference == LATEST:
        if found := [entry for entry in aligned if run in (None, entry.run)]:
            return found[0]
        raise _no_model(store, run, runs)
    by_hand = not HEXADECIMAL.fullmatch(reference)
    if by_hand and (named := _named(store, reference, entries)):
        return named
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


def _named(store: ArtifactStore, name: str, entries: Sequence[Entry]) -> Entry | None:
    """Return the artifact with this alias, or None if there is no such alias.

    If only the remote has the artifact, it is pulled with its ancestors.
    """
    current = store.aliases.current(name) if is_alias(name) else None
    if current is None:
        return None
    if all(entry.artifact.key != current.key for entry in entries):
        obtain_lineage(store, current.key, Logged())
        entries = catalogue(store)
    for entry in entries:
        if entry.artifact.key == current.key:
            return entry
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
    return with_ancestors(keys, there.get, readable_manifest)


def readable_manifest(artifact: Artifact) -> Manifest | None:
    """Return the manifest of an artifact, or None if it cannot be read."""
    try:
        return artifact.manifest()
    except (OSError, ValueError):
        return None


def _check_there(store: ArtifactStore) -> None:
    if store.remote is None:
        check_exists(store.root)
