"""Remove from a remote what no alias and no live lease needs, once it is old enough.

An artifact is first withdrawn. Then the aliases and leases are read again, and it is restored if it is needed now. An
alias is written before its artifact is looked up, so either the pruner sees the alias or the promoter sees the note.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from alignment_core.artifacts.aliases import Aliases
from alignment_core.artifacts.layout import ALIASES
from alignment_core.artifacts.models import verdicts_on
from alignment_core.artifacts.prune import Unneeded, named_keys
from alignment_core.artifacts.remote.checkpoints import PREFIX as CHECKPOINTS
from alignment_core.artifacts.remote.checkpoints import remove_checkpoints
from alignment_core.artifacts.remote.lease import live_keys
from alignment_core.artifacts.remote.objects import Stored
from alignment_core.artifacts.remote.remote import ARTIFACTS, PUBLISHED, Published, Remote
from alignment_core.artifacts.remote.shared_aliases import SharedAliases
from alignment_core.artifacts.sharing import required
from alignment_core.artifacts.store import ArtifactStore
from alignment_core.errors import ArtifactError, ConfigError

SHORTEST_SECONDS = 3600.0
"""No age below this: a push in progress has no lease if the remote was away when it started."""
UNNEEDED = "unneeded"


@dataclass
class _Key:
    """The objects of one key. `folders` are those of its pushes."""

    published: Stored | None = None
    folders: dict[str, list[Stored]] = field(default_factory=lambda: defaultdict(list))

    def newest(self) -> float:
        stored = [each for folder in self.folders.values() for each in folder]
        return max(each.modified for each in [*stored, *([self.published] if self.published else [])])


def prune_remote(store: ArtifactStore, *, older_than_seconds: float, dry_run: bool = False) -> list[Unneeded]:
    """Remove unneeded objects from the remote of a store and return them. Ages are those of the remote's own clock.

    Args:
        store: a store that shares with the remote. Its own folder stays as it is.
        older_than_seconds: keep what was written more recently than this.
        dry_run: only return what would be removed.

    Raises:
        ConfigError: the age is less than an hour.
        ArtifactError: there is no remote, it cannot be used, or a needed artifact is damaged.
    """
    if older_than_seconds < SHORTEST_SECONDS:
        raise ConfigError(
            "other machines may be writing to the remote, so only old artifacts can be removed from it",
            where="--older-than",
            got=f"{older_than_seconds / 86400:g} days",
            expected="at least an hour (0.05)",
        )
    return _Pruner(store, required(store), older_than_seconds, dry_run).prune()


class _Pruner:
    def __init__(self, store: ArtifactStore, remote: Remote, age: float, dry_run: bool) -> None:
        self._store, self._remote, self._dry_run = store, remote, dry_run
        self._newest = remote.objects.now() - age
        self._manifests = {found.key: found.manifest for found in remote.artifacts() if found.manifest is not None}

    def prune(self) -> list[Unneeded]:
        needed, leased = self._needed()
        removed: list[Unneeded] = []
        for key, objects in self._keys().items():
            if objects.newest() <= self._newest and key not in leased:
                removed += self._prune_key(key, objects, key in needed)
        return sorted([*removed, *self._prune_checkpoints(leased)], key=lambda item: item.name)

    def _needed(self) -> tuple[set[str], set[str]]:
        """Return the keys that an alias or a lease needs, with ancestors and verdicts; and those that a lease names."""
        # Not the aliases of the store object: those are read once.
        histories = SharedAliases(self._store.root, self._remote)
        if histories.read() is None:
            raise ArtifactError("nothing was removed: the aliases cannot be read", where=self._remote.address)
        leased = live_keys(self._remote.objects)
        named = set(named_keys(Aliases(self._store.root / ALIASES, histories)))
        found = self._remote.lineage([*leased, *named])
        for key, entry in found.items():
            if entry is not None and entry.manifest is None and not entry.withdrawn:
                raise ArtifactError(
                    "nothing was removed: a needed artifact is damaged, so its ancestors are unknown",
                    where=f"{self._remote.address}: {key}",
                    got=entry.fault,
                    do="Run its pipeline again to rebuild it, or promote another model",
                )
        return set(found) | verdicts_on(named, self._manifests), leased

    def _keys(self) -> dict[str, _Key]:
        keys: dict[str, _Key] = defaultdict(_Key)
        for stored in self._remote.objects.list(ARTIFACTS):
            _, key, name, *_ = stored.name.split("/")
            if name == PUBLISHED:
                keys[key].published = stored
            else:
                keys[key].folders[f"{ARTIFACTS}{key}/{name}/"].append(stored)
        return keys

    def _prune_key(self, key: str, objects: _Key, needed: bool) -> Iterator[Unneeded]:
        """Remove the folders that belong to no artifact, and the artifact itself unless it is needed."""
        entry = self._remote.look_up(key)
        kind = "artifact" if entry is None or entry.manifest is None else entry.manifest.kind
        removes = entry is not None and not needed and not entry.withdrawn
        if removes and not self._dry_run:
            assert entry is not None
            removes = self._withdraw(entry)
        for folder, files in objects.folders.items():
            own = entry is not None and folder == entry.folder
            if own and not removes:
                continue
            yield Unneeded(kind if own else "unfinished push", folder.rstrip("/"), sum(file.size for file in files))
            if not self._dry_run:
                self._remote.objects.delete([file.name for file in files])

    def _withdraw(self, entry: Published) -> bool:
        """Withdraw an unneeded artifact. Return False if it is needed now, and is there again."""
        tag = self._remote.withdraw(entry, UNNEEDED)
        if tag is None:
            return False
        if entry.manifest is None or entry.key not in self._needed()[0]:
            return True
        self._remote.restore(entry, tag)
        return False

    def _prune_checkpoints(self, leased: set[str]) -> Iterator[Unneeded]:
        keys: dict[str, list[Stored]] = defaultdict(list)
        for stored in self._remote.objects.list(CHECKPOINTS):
            keys[stored.name.split("/")[1]].append(stored)
        for key, files in keys.items():
            if key not in leased and max(file.modified for file in files) <= self._newest:
                yield Unneeded("unfinished build", f"{CHECKPOINTS}{key}", sum(file.size for file in files))
                if not self._dry_run:
                    remove_checkpoints(self._remote.objects, key)
