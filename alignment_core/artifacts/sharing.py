"""What goes to the remote of a store, and comes from there.

The local store is complete in itself: everything works without the remote, except to change an alias. What could not
be pushed is noted, and pushed by the next run that uses it, or by `align artifacts push`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace

from alignment_core.artifacts.files import explain_unwritable
from alignment_core.artifacts.layout import described
from alignment_core.artifacts.remote.checkpoints import pull_checkpoint, pushing, remove_checkpoints
from alignment_core.artifacts.remote.connection import Pending, record_address, recorded_address
from alignment_core.artifacts.remote.lease import build_lease, run_lease
from alignment_core.artifacts.remote.objects import Conflict, Unreachable
from alignment_core.artifacts.remote.remote import Published, Remote
from alignment_core.artifacts.remote.shared_aliases import push_lineage
from alignment_core.artifacts.store import Artifact, ArtifactStore, Building
from alignment_core.errors import ArtifactError
from alignment_core.progress import Progress, Silent

PULLED = "pulled"
PROBE = "clock/conditional-write"

logger = logging.getLogger(__name__)


def connect(store: ArtifactStore) -> None:
    """Record that a store shares its artifacts with its remote, and give the remote the aliases of the store.

    Raises:
        ArtifactError: the remote cannot be used, ignores the conditions of writes, or has other aliases.
    """
    remote = store.remote
    if remote is None or recorded_address(store.root) is not None:
        return
    _check_conditions(remote)
    store.aliases.share()
    record_address(store.root, remote.address)


def _check_conditions(remote: Remote) -> None:
    """Check that a write fails if the object exists. Else two machines would overwrite each other's aliases."""
    there = remote.objects.read(PROBE)
    tag = None if there is None else there[1]
    try:
        if tag is None:
            remote.objects.write(PROBE, b"This object exists.\n", None)
        remote.objects.write(PROBE, b"The server ignores If-None-Match.\n", None)
    except Conflict:
        return
    raise ArtifactError(
        "the remote of the store ignores the conditions of writes (If-None-Match)",
        where=remote.address,
        do="Use a server that knows them, such as S3, Google Cloud Storage, Azure, MinIO or Ceph in a current version",
    )


@contextmanager
def held(store: ArtifactStore, keys: Iterable[str]) -> Iterator[None]:
    """Protect these artifacts and their ancestors from pruning during the block, also in the remote.

    Raises:
        ArtifactError: the store cannot be written, or its remote cannot be used for the first time.
    """
    keys = list(keys)
    with ExitStack() as stack:
        stack.enter_context(store.leases.held(keys))
        if store.remote is not None:
            connect(store)
            try:
                stack.enter_context(run_lease(store.remote.objects, keys, Logged()))
            except Unreachable as error:
                logger.info("the artifacts of this run are not protected from pruning in the remote: %s", error)
        yield


def obtain(store: ArtifactStore, key: str, progress: Progress) -> Artifact | None:
    """Return the artifact with this key, verified: from the store, or pulled from its remote. None if neither has it.

    An artifact that only the store has is pushed. A damaged one in the remote is withdrawn, so that a new one takes its
    place.

    Raises:
        ArtifactError: the store cannot be read or written.
        Stopped: the stage was asked to stop during a transfer.
    """
    found = store.find(key, progress.warn)
    if store.remote is None:
        return found
    if found is not None:
        _push_or_note(store, store.remote, found, progress)
        return found
    try:
        entry = store.remote.look_up(key)
        if entry is None:
            return None
        if entry.manifest is None:
            _condemn(store.remote, entry, progress)
            return None
        with store.building(entry.manifest.kind, key, progress) as building:
            return building.found or _pull(store, store.remote, entry, building, progress)
    except Unreachable as error:
        progress.warn(f"{key} was not looked up in the remote: {error}")
        return None


def sizes_in_remote(store: ArtifactStore, keys: Mapping[str, str]) -> dict[str, int]:
    """Return the size in bytes of each of these artifacts that the remote holds, by the names of the keys.

    If the remote cannot be used, the log says so, and nothing is returned.
    """
    found: dict[str, int] = {}
    if store.remote is None:
        return found
    for name, key in keys.items():
        try:
            entry = store.remote.look_up(key)
        except Unreachable as error:
            logger.warning("what would be pulled is not known: %s", error)
            break
        if entry is not None and entry.manifest is not None:
            found[name] = entry.size
    return found


def obtain_lineage(store: ArtifactStore, key: str, progress: Progress) -> None:
    """Pull an artifact and its ancestors, as far as the remote holds them and the store does not.

    Raises:
        ArtifactError: the store cannot be read or written, or the remote cannot be used.
    """
    if store.remote is None:
        return
    there = {artifact.key for artifact in store.artifacts()}
    for each in reversed(store.remote.lineage([key])):  # the artifact last: whoever finds it finds its ancestors
        if each not in there:
            obtain(store, each, progress)


@contextmanager
def building(
    store: ArtifactStore,
    kind: str,
    key: str,
    needs: Iterable[str],
    progress: Progress,
    checkpoint_seconds: float | None = None,
) -> Iterator[Building]:
    """Build one key on one machine at a time, as `ArtifactStore.building` does on one machine.

    Waits for another machine that is building it, and pulls its artifact. The new artifact is pushed at the end.

    Args:
        store: the store.
        kind, key: the artifact.
        needs: keys of the artifacts that the build reads.
        progress: receives what happens.
        checkpoint_seconds: time between pushes of checkpoints. None: no checkpoint is pushed.

    Raises:
        Stopped: the stage was asked to stop while it waited or pushed.
        ArtifactError: the store cannot be written.
    """
    with ExitStack() as stack:
        local = stack.enter_context(store.building(kind, key, progress))
        if local.found is not None or store.remote is None:
            yield local
            return
        remote = store.remote
        try:
            stack.enter_context(build_lease(remote.objects, key, needs, progress))
            found = _made_meanwhile(store, remote, local, progress)
        except Unreachable as error:
            progress.log(f"building {key} without a lease, so another machine may build it too: {error}")
            found = None
        if found is not None:
            yield replace(local, found=found)
            return
        pending = Pending(store.root)
        pending.add(key)
        folder = store.root / kind / key
        try:
            every = checkpoint_seconds
            with nullcontext() if every is None else pushing(remote.objects, key, local.checkpoints, every, progress):
                yield local
        finally:
            if not (built := described(folder) is not None):
                pending.remove(key)
        if built:
            _push_or_note(store, remote, Artifact(kind, key, str(folder)), progress)


def push_pending(store: ArtifactStore, progress: Progress) -> list[str]:
    """Push what could not be pushed before. Return the keys that the remote has now.

    Raises:
        Unreachable: the remote cannot be used.
    """
    if store.remote is None:
        return []
    there = {artifact.key: artifact for artifact in store.artifacts()}
    pushed = []
    for key in Pending(store.root).noted():
        if (artifact := there.get(key)) is not None:  # else it is still being built
            _push(store, store.remote, artifact, progress)
            pushed.append(key)
    return pushed


def push(store: ArtifactStore, key: str, progress: Progress) -> None:
    """Push an artifact and its ancestors, whenever they were built.

    Raises:
        ArtifactError: the store has no remote, or the remote cannot be used.
    """
    push_lineage(store.root, required(store), key, progress)


def required(store: ArtifactStore) -> Remote:
    """Return the remote of a store.

    Raises:
        ArtifactError: it has none.
    """
    if store.remote is None:
        raise ArtifactError(
            "this store shares its artifacts with no remote",
            where=str(store.root),
            do="Run with the setting `remote`, or connect the store with `align artifacts connect ADDRESS`",
        )
    return store.remote


def _made_meanwhile(store: ArtifactStore, remote: Remote, local: Building, progress: Progress) -> Artifact | None:
    """Return the artifact if another machine has pushed it. Else take over its newest checkpoint."""
    entry = remote.look_up(local.key)
    if entry is not None and entry.manifest is not None:
        found = _pull(store, remote, entry, local, progress)
        if found is not None:
            return found
    pull_checkpoint(remote.objects, local.key, local.checkpoints, progress)
    return None


def _pull(
    store: ArtifactStore, remote: Remote, entry: Published, local: Building, progress: Progress
) -> Artifact | None:
    """Download an artifact, verify it and publish it in the store. If it is damaged, withdraw it and return None."""
    assert entry.manifest is not None
    folder = local.out.parent / PULLED / entry.manifest.digest
    with explain_unwritable(store.root):
        folder.mkdir(parents=True, exist_ok=True)
        fault = remote.pull(entry, folder, progress)
        if fault is None:
            return local.adopt(folder)
        shutil.rmtree(folder.parent, ignore_errors=True)
    _condemn(remote, replace(entry, fault=fault), progress)
    return None


def _condemn(remote: Remote, entry: Published, progress: Progress) -> None:
    """Withdraw a damaged artifact, unless it was withdrawn before."""
    if entry.withdrawn:
        return
    progress.warn(f"{entry.key} in {remote.address} is damaged: {entry.fault}. It is built and pushed anew")
    try:
        remote.withdraw(entry, f"damaged: {entry.fault}")
    except Unreachable as error:
        progress.warn(f"{entry.key} was not withdrawn from the remote: {error}")


def _push_or_note(store: ArtifactStore, remote: Remote, artifact: Artifact, progress: Progress) -> None:
    try:
        _push(store, remote, artifact, progress)
    except Unreachable as error:
        Pending(store.root).add(artifact.key)
        progress.warn(
            f"{artifact.kind}/{artifact.key} is in the local store and was not pushed. The next run that uses it or "
            f"`align artifacts push` does so: {error}"
        )


def _push(store: ArtifactStore, remote: Remote, artifact: Artifact, progress: Progress) -> None:
    if not remote.push(artifact.path, progress):
        progress.log(f"the remote keeps another machine's build of {artifact.kind}/{artifact.key}")
    remove_checkpoints(remote.objects, artifact.key)
    Pending(store.root).remove(artifact.key)


class Logged(Silent):
    """Progress of a transfer that belongs to no stage."""

    def log(self, message: str) -> None:
        logger.info(message)

    def warn(self, message: str) -> None:
        logger.warning(message)
