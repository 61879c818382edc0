"""What a stage is, and what it is called with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from alignment_core.progress import Progress


class Runtime(BaseModel):
    """Where and how a stage runs; nothing here enters a cache key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: Path
    device: str = "auto"
    token_budget: int | Literal["auto"] = "auto"
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    memory_gb: float | None = None
    isolation: str = "process"
    checkpoint_seconds: float = 120.0
    run: str = ""
    listeners: tuple[dict[str, Any], ...] = ()


class StageCall(BaseModel):
    """One stage with everything that decides its result. Plain JSON: it crosses from the flow to the stage's process.

    Attributes:
        stage: name of the stage, and of its module in `alignment_core.stages`.
        key: content address of the result.
        label: for people, e.g. `sft · stories260k · 3f2a`.
        config: the settings that the stage reads; all of it is hashed into `key`.
        parents: keys of the artifacts it reads, by role.
        inputs: where the things whose *content* is hashed into `config` lie on this machine (paths, hub ids).
        runtime: where and how it runs.
        standing: keys of further artifacts it reads, by role, that no stage of this run makes: they are in the store.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    key: str
    label: str
    config: dict[str, Any]
    parents: dict[str, str]
    inputs: dict[str, Any]
    runtime: Runtime
    standing: dict[str, str] = Field(default_factory=dict)

    def reads(self) -> dict[str, str]:
        """Keys of everything that it reads, by role."""
        return {**self.parents, **self.standing}


@dataclass(frozen=True)
class Job:
    """A stage call, opened: what `Stage.run` is given.

    Attributes:
        call: the call.
        parents: folders of the parent artifacts, by role.
        out: an empty folder; what lies in it at the end is the artifact.
        checkpoints: a folder that survives a kill; the same call finds it again.
        progress: where to report.
    """

    call: StageCall
    parents: Mapping[str, Path]
    out: Path
    checkpoints: Path
    progress: Progress


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline.

    Attributes:
        name: as in `StageCall.stage`, and the artifact's kind.
        version: enters every key; raised when the same settings give another result.
        run: fills `job.out` and returns the metrics for the manifest (plain JSON).
    """

    name: str
    version: int
    run: Callable[[Job], dict[str, Any]]
