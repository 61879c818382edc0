"""Build one stage: take it from the artifact store, or run it in a separate process, which frees all its memory."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment_core.addresses import hide_secrets
from alignment_core.artifacts import Artifact, ArtifactStore, Manifest
from alignment_core.artifacts.sharing import building as building_alone
from alignment_core.artifacts.sharing import held, obtain
from alignment_core.errors import ArtifactError
from alignment_core.execution.finished import finish
from alignment_core.execution.launcher import build_in_process
from alignment_core.execution.listeners import ListeningProgress
from alignment_core.execution.stage import Job, StageCall
from alignment_core.progress import Progress
from alignment_core.ranks.cards import check_cards


@dataclass(frozen=True)
class StageResult:
    """A finished stage.

    Attributes:
        artifact: the artifact of the stage.
        cached: whether the artifact was in the store, or was built by another run while this one waited.
        seconds: wall time of the stage in this run.
        metrics: the metrics of the stage from when it was built.
        listener_errors: errors of listeners in this run. The artifact does not record them: it may be from an earlier
            run.
    """

    artifact: Artifact
    cached: bool
    seconds: float
    metrics: dict[str, Any]
    listener_errors: tuple[str, ...] = ()


def build(call: StageCall, progress: Progress) -> StageResult:
    """Return the artifact of `call`: a verified one from the store, or a new one.

    An interrupted build resumes from its last checkpoint. If an exception is raised while the stage's process runs
    (Ctrl-C, a cancelled flow run), the process is stopped first and has time to write a checkpoint.

    Raises:
        AlignmentError: the error that the stage raised, or `StageCrashed` if its process crashed.
    """
    if (found := find(call, progress)) is not None:
        return found
    started = time.monotonic()
    audience = ListeningProgress(call, progress)
    try:
        artifact, cached = _run(call, audience)
    except BaseException as error:
        audience.failed(error)
        raise
    return _finished(artifact, cached, started, audience)


def find(call: StageCall, progress: Progress) -> StageResult | None:
    """Return the artifact of `call` from the store or its remote, verified, or None if it must be built.

    Raises:
        ArtifactError: the store cannot be read or written.
        PluginError, ConfigError: a listener is not installed, or its settings are invalid.
    """
    started = time.monotonic()
    audience = ListeningProgress(call, progress)
    artifact = obtain(store_of(call), call.key, progress)
    return None if artifact is None else _finished(artifact, True, started, audience)


def _finished(artifact: Artifact, cached: bool, started: float, audience: ListeningProgress) -> StageResult:
    metrics = artifact.manifest().metrics
    audience.finished(metrics, cached=cached)
    return StageResult(artifact, cached, time.monotonic() - started, metrics, tuple(audience.faults))


def hold_leases(calls: Iterable[StageCall]) -> AbstractContextManager[None]:
    """Protect everything that these stages of one run read or write from pruning while the context is active.

    Raises:
        ArtifactError: the store cannot be written, or its remote cannot be used for the first time.
    """
    calls = list(calls)
    keys = {key for call in calls for key in (call.key, *call.reads().values())}
    return held(store_of(calls[0]), keys)


def check_cards_of(calls: Iterable[StageCall]) -> None:
    """Check that this machine has the cards of those stages of a run that are not in its store yet.

    Raises:
        ConfigError: it has fewer.
    """
    for call in calls:
        if call.cards > 1 and store_of(call).find(call.key) is None:
            check_cards(call.cards, call.runtime.device)


def store_of(call: StageCall) -> ArtifactStore:
    """Return the store of a stage, with the remote that it shares its artifacts with.

    Raises:
        ArtifactError: the store belongs to another remote, or the remote cannot be opened.
    """
    return ArtifactStore(call.runtime.store, call.runtime.remote)


def _run(call: StageCall, audience: ListeningProgress) -> tuple[Artifact, bool]:
    audience.started()
    return (build_in_process if call.runtime.isolation == "process" else build_here)(call, audience)


def build_here(call: StageCall, progress: Progress) -> tuple[Artifact, bool]:
    """Build `call` in this process.

    Returns:
        The artifact, and whether another run had built it before this process got the lock.
    """
    store = store_of(call)
    keys = {call.key, *call.reads().values()}
    counted = _CountedWarnings(progress)
    try:
        with (
            store.leases.held(keys),
            building_alone(
                store, call.stage, call.key, call.reads().values(), counted, call.runtime.remote_checkpoint_seconds
            ) as building,
        ):
            if building.found is not None:
                return building.found, True
            started = time.monotonic()
            parents = {role: _parent(store, role, key, call, counted) for role, key in call.reads().items()}
            finished = finish(Job(call, parents, building.out, building.checkpoints, counted))
            manifest = Manifest(
                kind=call.stage,
                key=call.key,
                version=finished.version,
                config=call.config,
                parents=call.reads(),
                inputs=call.inputs,
                seed=call.config.get("seed"),
                run=call.runtime.run,
                metrics={**finished.metrics, "warnings": counted.messages},
                seconds=time.monotonic() - started,
                peak_memory_bytes=finished.peak_memory,
                peak_device_memory_bytes=finished.peak_device_memory,
                outside_device_memory_bytes=finished.outside_device_memory,
            )
            return building.publish(manifest), False
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ArtifactError(
            "the disk is full",
            where=str(error.filename or store.root),
            do="Free some disk space and run again. The run resumes from the last checkpoint",
        ) from error


def _parent(store: ArtifactStore, role: str, key: str, call: StageCall, progress: Progress) -> Path:
    artifact = obtain(store, key, progress)
    if artifact is None:
        raise ArtifactError(
            f"the `{role}` artifact that {call.label} reads is missing or damaged",
            where=str(store.root),
            got=f"no {key}",
            do="Run the pipeline again to build the missing artifacts",
        )
    return artifact.path


class _CountedWarnings:
    """Progress that collects the warnings for the manifest."""

    def __init__(self, listener: Progress) -> None:
        self._listener = listener
        self.messages: list[str] = []

    @property
    def stopping(self) -> bool:
        return self._listener.stopping

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        self._listener.step(done, total, metrics)

    def log(self, message: str) -> None:
        self._listener.log(message)

    def warn(self, message: str) -> None:
        self.messages.append(hide_secrets(message))
        self._listener.warn(message)
