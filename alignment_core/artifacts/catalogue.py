"""The catalogue of an artifact store: listing, lookup by alias or key prefix, lineage, promotion and rollback."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from alignment_core.artifacts.alias_history import Change
from alignment_core.artifacts.layout import check_exists
from alignment_core.artifacts.manifest import Manifest
from alignment_core.artifacts.remote.remote import Published
from alignment_core.artifacts.sharing import Logged, obtain_lineage, required
from alignment_core.artifacts.store import KEY, Artifact, ArtifactStore
from alignment_core.errors import ArtifactError

PROMOTABLE = ("optimize", "sft")
LATEST = "latest"
HEX = re.compile(r"[0-9a-f]+")
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
    def created(self) -> str:
        """Time of creation, ISO 8601, UTC; empty if the manifest is unreadable."""
        return "" if self.manifest is None else self.manifest.created


def catalogue(store: ArtifactStore) -> list[Entry]:
    """Return every artifact of the store, newest first.

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
    named = None if reference is None else store.aliases.current(reference) if not HEX.fullmatch(reference) else None
    prefix = named.key if named is not None else reference or ""
    chosen = [(entry, published) for entry, published in remote_catalogue(store) if published.key.startswith(prefix)]
    if reference is not None and not chosen:
        raise ArtifactError("the remote has no such artifact", where=required(store).address, got=reference)
    faults = {entry.artifact: required(store).fault(published, Logged()) for entry, published in chosen}
    return len(chosen), {artifact: fault for artifact, fault in faults.items() if fault}


def resolve(store: ArtifactStore, reference: str, kinds: Iterable[str] = ()) -> Entry:
    """Return the one artifact that a reference names.

    Args:
        store: the artifact store.
        reference: an alias, a key, a key prefix, or `latest` for the newest artifact of `kinds`.
        kinds: kinds of artifacts to search; empty for all kinds. An alias is resolved regardless of `kinds`.

    Raises:
        ArtifactError: there is no store, no artifact matches, or several do.
    """
    _check_there(store)
    if reference != LATEST and not HEX.fullmatch(reference):
        return _named(store, reference)
    if store.remote is not None and KEY.fullmatch(reference) and store.find(reference) is None:
        obtain_lineage(store, reference, Logged())
    entries = catalogue(store)
    of_kind = [entry for entry in entries if not kinds or entry.artifact.kind in kinds]
    if reference == LATEST:
        found = of_kind[:1]
    else:
        found = [entry for entry in of_kind if entry.artifact.key.startswith(reference)]
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(f"{entry.artifact.kind}/{entry.artifact.key}" for entry in found[:SHOWN])
        raise ArtifactError(
            f"the key prefix is ambiguous: {len(found)} artifacts match",
            where=str(store.root),
            got=reference,
            expected=f"a longer prefix of one of {some}" + (", …" if len(found) > SHOWN else ""),
        )
    others = {entry.artifact.kind for entry in entries if entry.artifact.key.startswith(reference)}
    raise ArtifactError(
        "there is no such artifact",
        where=str(store.root),
        got=f"{reference}, of kind {', '.join(sorted(others))}" if others else reference,
        expected=f"one of kind {' or '.join(kinds)}" if kinds else None,
        do="List the artifacts with `align artifacts list`, or choose another store with `--store`",
    )


def _named(store: ArtifactStore, name: str) -> Entry:
    """Return the artifact with this alias. If only the remote has it, it is pulled with its ancestors."""
    current = store.aliases.current(name)
    if current is None:
        names = store.aliases.names()
        raise ArtifactError(
            "no artifact has this alias, and it is not a key (hexadecimal digits)",
            where=str(store.root),
            got=name,
            expected=f"one of {', '.join(names)}" if names else None,
            do=None if names else "Give a model an alias with `align promote`",
        )
    if all(artifact.key != current.key for artifact in store.artifacts()):
        obtain_lineage(store, current.key, Logged())
    for entry in catalogue(store):
        if entry.artifact.key == current.key:
            return entry
    raise ArtifactError(
        f"the artifact with the alias `{name}` is no longer in the store",
        where=str(store.root),
        got=f"{current.kind}/{current.key}",
        do="Promote another model with `align promote`, or roll back with `align rollback`",
    )


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


def promote(store: ArtifactStore, reference: str, alias: str, *, by: str, reason: str) -> Change:
    """Verify every file of a model and give it an alias.

    Args:
        store: the artifact store.
        reference: an alias, a key, a key prefix, or `latest`.
        alias: the alias to give, such as `production`.
        by: the person or run that promotes.
        reason: the reason, stored in the history.

    Raises:
        ArtifactError: there is no such model, it is damaged, or the alias is invalid.
    """
    check_exists(store.root)
    store.aliases.current(alias)  # report an invalid alias first
    entry = resolve(store, reference, PROMOTABLE)
    if entry.artifact.kind not in PROMOTABLE:
        raise ArtifactError(
            "only SFT models and policies can be promoted",
            got=f"{entry.artifact.kind}/{entry.artifact.key}",
            expected=f"an artifact of kind {' or '.join(PROMOTABLE)}",
        )
    with store.leases.held([entry.artifact.key]):
        _refuse_damaged(store, entry.artifact)
        return store.aliases.promote(alias, entry.artifact.kind, entry.artifact.key, by=by, reason=reason)


def rollback(store: ArtifactStore, alias: str, *, by: str, reason: str) -> Change:
    """Move an alias back to the model that had it before the last promotion.

    Raises:
        ArtifactError: there is no earlier promotion, or its model is missing or damaged.
    """
    check_exists(store.root)
    before = store.aliases.before(alias)
    if before is None:
        raise ArtifactError(
            "there is no earlier promotion to roll back to",
            where=alias,
            got="no promotion" if store.aliases.current(alias) is None else "1 promotion that was not rolled back",
            expected="at least 2",
            do=f"List the aliases with `align artifacts list --store {store.root}`",
        )
    obtain_lineage(store, before.key, Logged())
    with store.leases.held([before.key]):
        _refuse_damaged(store, Artifact(before.kind, before.key, str(store.root / before.kind / before.key)))
        return store.aliases.rollback(alias, before, by=by, reason=reason)


def _check_there(store: ArtifactStore) -> None:
    if store.remote is None:
        check_exists(store.root)


def _refuse_damaged(store: ArtifactStore, artifact: Artifact) -> None:
    fault = store.fault(artifact) if os.path.lexists(artifact.path) else "it is no longer in the store"
    if fault is not None:
        raise ArtifactError(
            f"the model cannot be promoted: {fault}",
            where=str(artifact.path),
            do="Run its pipeline again to rebuild it, or promote another model",
        )
