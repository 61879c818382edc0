"""What is in a store: artifacts by the words that people use for them, what they are made from, and their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from alignment_core.artifacts.aliases import Change
from alignment_core.artifacts.manifest import Manifest
from alignment_core.artifacts.store import Artifact, ArtifactStore
from alignment_core.errors import ArtifactError

PROMOTABLE = ("optimize", "sft")
LATEST = "latest"
SHOWN = 5


@dataclass(frozen=True)
class Entry:
    """One artifact of a store.

    Attributes:
        artifact: where it is.
        manifest: what it says about itself; None where that cannot be read.
        aliases: the names that it has now.
    """

    artifact: Artifact
    manifest: Manifest | None
    aliases: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return 0 if self.manifest is None else sum(record.size for record in self.manifest.files.values())

    @property
    def created(self) -> str:
        """When it was made, ISO 8601, UTC; empty where that cannot be read."""
        return "" if self.manifest is None else self.manifest.created


def catalogue(store: ArtifactStore) -> list[Entry]:
    """Every artifact of the store, the newest first."""
    names: dict[str, list[str]] = {}
    for name in store.aliases.names():
        if current := store.aliases.current(name):
            names.setdefault(current.key, []).append(name)
    entries = [
        Entry(artifact, readable(artifact), tuple(names.get(artifact.key, ()))) for artifact in store.artifacts()
    ]
    return sorted(entries, key=lambda entry: (entry.created, entry.artifact.key), reverse=True)


def resolve(store: ArtifactStore, reference: str, kinds: Iterable[str] = ()) -> Entry:
    """The one artifact that a person means.

    Args:
        store: the store.
        reference: an alias, a key, the beginning of one, or `latest`: the newest of `kinds`.
        kinds: only artifacts of these stages count; all if empty.

    Raises:
        ArtifactError: there is none, or there are several.
    """
    entries = catalogue(store)
    of_kind = [entry for entry in entries if not kinds or entry.artifact.kind in kinds]
    if reference == LATEST:
        found = of_kind[:1]
    elif not re.fullmatch(r"[0-9a-f]+", reference):
        return _named(store, reference, entries)
    else:
        found = [entry for entry in of_kind if entry.artifact.key.startswith(reference)]
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(f"{entry.artifact.kind}/{entry.artifact.key}" for entry in found[:SHOWN])
        raise ArtifactError(
            f"{len(found)} artifacts have keys that begin so",
            where=str(store.root),
            got=reference,
            expected=f"enough of the key to name one: {some}" + (", …" if len(found) > SHOWN else ""),
        )
    others = {entry.artifact.kind for entry in entries if entry.artifact.key.startswith(reference)}
    raise ArtifactError(
        "there is no such artifact",
        where=str(store.root),
        got=f"{reference}, of kind {', '.join(sorted(others))}" if others else reference,
        expected=f"one of kind {' or '.join(kinds)}" if kinds else None,
        do="See what there is by `align artifacts list`, and name another store by `--store`",
    )


def _named(store: ArtifactStore, name: str, entries: Iterable[Entry]) -> Entry:
    current = store.aliases.current(name)
    if current is None:
        names = store.aliases.names()
        raise ArtifactError(
            "no artifact has this alias, and keys are of the digits 0 to 9 and a to f",
            where=str(store.root),
            got=name,
            expected=f"one of {', '.join(names)}" if names else None,
            do=None if names else "Give a model a name by `align promote`",
        )
    for entry in entries:
        if entry.artifact.key == current.key:
            return entry
    raise ArtifactError(
        f"the artifact that `{name}` means is no longer in the store",
        where=str(store.root),
        got=f"{current.kind}/{current.key}",
        do="Promote another by `align promote`, or go back by `align rollback`",
    )


def lineage(store: ArtifactStore, keys: Iterable[str]) -> dict[str, Artifact | None]:
    """Artifacts and everything that they are made from, by key; None for what is no longer there."""
    there = {artifact.key: artifact for artifact in store.artifacts()}
    found: dict[str, Artifact | None] = {}
    open_keys = list(keys)
    while open_keys:
        key = open_keys.pop()
        if key not in found:
            found[key] = there.get(key)
            manifest = readable(artifact) if (artifact := found[key]) else None
            open_keys += manifest.parents.values() if manifest else ()
    return found


def readable(artifact: Artifact) -> Manifest | None:
    """The manifest of an artifact; None where it cannot be read."""
    try:
        return artifact.manifest()
    except (OSError, ValueError):
        return None


def promote(store: ArtifactStore, reference: str, alias: str, *, by: str, reason: str) -> Change:
    """Give an alias to a model, after every file of it was verified.

    Args:
        store: the store.
        reference: an alias, a key, the beginning of one, or `latest`.
        alias: the name, such as `production`.
        by: which person or run does it.
        reason: why.

    Raises:
        ArtifactError: there is no such model, it is damaged, or the name cannot be one.
    """
    store.aliases.current(alias)  # a name that cannot be one is told first
    entry = resolve(store, reference, PROMOTABLE)
    if entry.artifact.kind not in PROMOTABLE:
        raise ArtifactError(
            "only a model can be promoted",
            got=f"{entry.artifact.kind}/{entry.artifact.key}",
            expected=f"an artifact of kind {' or '.join(PROMOTABLE)}",
        )
    with store.leases.held([entry.artifact.key]):
        _refuse_damaged(store, entry.artifact)
        return store.aliases.promote(alias, entry.artifact.kind, entry.artifact.key, by=by, reason=reason)


def roll_back(store: ArtifactStore, alias: str, *, by: str, reason: str) -> Change:
    """Give an alias back to the model that had it before the last promotion.

    Raises:
        ArtifactError: there is none before, or it is no longer there, or damaged.
    """
    before = store.aliases.before(alias)
    if before is None:
        raise ArtifactError(
            "there is nothing to go back to",
            where=alias,
            got="no promotion" if store.aliases.current(alias) is None else "one promotion that was not rolled back",
            expected="at least two",
        )
    with store.leases.held([before.key]):
        _refuse_damaged(store, Artifact(before.kind, before.key, str(store.root / before.kind / before.key)))
        return store.aliases.rollback(alias, before, by=by, reason=reason)


def _refuse_damaged(store: ArtifactStore, artifact: Artifact) -> None:
    fault = store.fault(artifact) if artifact.path.is_dir() else "it is no longer in the store"
    if fault is not None:
        raise ArtifactError(
            f"the model cannot be promoted: {fault}",
            where=str(artifact.path),
            do="Run its pipeline again, which rebuilds it, or promote another",
        )
