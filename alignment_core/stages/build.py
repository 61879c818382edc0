"""Build one stage: from the store if it is there, else in a process of its own, whose memory is truly returned."""

from __future__ import annotations

import errno
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment_core.artifacts import Artifact, ArtifactStore, Manifest
from alignment_core.errors import ArtifactError
from alignment_core.progress import Progress
from alignment_core.stages import load_stage
from alignment_core.stages.audience import Audience
from alignment_core.stages.base import Job, StageCall
from alignment_core.stages.process import run_in_process


@dataclass(frozen=True)
class Built:
    """A finished stage.

    Attributes:
        artifact: what it made.
        cached: whether it was there already, or another run built it while this one waited.
        seconds: wall time that it took in this run.
        metrics: what the stage measured when it was built.
        untold: what listeners failed with in this run, which the artifact, made before or elsewhere, cannot say.
    """

    artifact: Artifact
    cached: bool
    seconds: float
    metrics: dict[str, Any]
    untold: tuple[str, ...] = ()


def build(call: StageCall, progress: Progress) -> Built:
    """The artifact of `call`, verified or newly made.

    An interrupted build is resumed from its last checkpoint. Whatever is raised while the stage's process runs
    (Ctrl-C, a cancelled flow run) stops that process first, with time for a checkpoint.

    Raises:
        AlignmentError: what the stage raised; `StageCrashed` if its process died.
    """
    started = time.monotonic()
    audience = Audience(call, progress)
    found = ArtifactStore(call.runtime.store).find(call.key, progress.warn)
    try:
        artifact, cached = (found, True) if found is not None else _run(call, audience)
    except BaseException as error:
        audience.failed(error)
        raise
    metrics = artifact.manifest().metrics
    audience.finished(metrics, cached=cached)
    return Built(artifact, cached, time.monotonic() - started, metrics, tuple(audience.faults))


def leased(calls: Iterable[StageCall]) -> AbstractContextManager[None]:
    """Nothing that these stages of one run read or make is pruned while the block lasts.

    Raises:
        ArtifactError: the store cannot be written.
    """
    calls = list(calls)
    keys = {key for call in calls for key in (call.key, *call.reads().values())}
    return ArtifactStore(calls[0].runtime.store).leases.held(keys)


def _run(call: StageCall, audience: Audience) -> tuple[Artifact, bool]:
    audience.started()
    return (run_in_process if call.runtime.isolation == "process" else run_here)(call, audience)


def run_here(call: StageCall, progress: Progress) -> tuple[Artifact, bool]:
    """Build `call` in this process, and tell whether another run had built it before the lock was ours."""
    store = ArtifactStore(call.runtime.store)
    counted = _CountedWarnings(progress)
    try:
        with leased([call]), store.building(call.stage, call.key, counted) as building:
            if building.found is not None:
                return building.found, True
            started = time.monotonic()
            stage = load_stage(call.stage)
            parents = {role: _parent(store, role, key, call) for role, key in call.reads().items()}
            metrics = stage.run(Job(call, parents, building.out, building.checkpoints, counted))
            manifest = Manifest(
                kind=call.stage,
                key=call.key,
                version=stage.version,
                config=call.config,
                parents=call.reads(),
                inputs=call.inputs,
                seed=call.config.get("seed"),
                metrics={**metrics, "warnings": counted.messages},
                seconds=time.monotonic() - started,
                peak_memory_bytes=peak_memory(),
                peak_device_memory_bytes=peak_device_memory(),
            )
            return building.publish(manifest), False
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ArtifactError(
            "the disk is full",
            where=str(error.filename or store.root),
            do="Free some space and run again: it goes on from the last checkpoint",
        ) from error


def _parent(store: ArtifactStore, role: str, key: str, call: StageCall) -> Path:
    artifact = store.find(key)
    if artifact is None:
        raise ArtifactError(
            f"the `{role}` artifact that {call.label} reads is missing or damaged",
            where=str(store.root),
            got=f"no {key}",
            do="Run the pipeline again: it builds what is missing",
        )
    return artifact.path


class _CountedWarnings:
    """Progress that remembers the warnings, for the manifest."""

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
        self.messages.append(message)
        self._listener.warn(message)


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    # Linux's ru_maxrss also remembers the parent that a process was forked from; VmHWM does not.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_device_memory() -> int | None:
    """Most memory that tensors took on the current CUDA device, in bytes; None where CUDA was not used."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.max_memory_allocated())
