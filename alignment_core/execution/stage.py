"""Stages, and the calls that run them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from alignment_core.progress import Progress
from alignment_core.ranks import ALONE, Ranks

ON_SEVERAL_CARDS = ("sft", "reward", "reference", "sample", "optimize", "evaluate", "score")
"""Stages that several cards can share."""
ON_ONE_CARD = ("head_to_head", "lm_eval")
"""Stages that run a model on one card, whatever `gpus` says."""


class WorkPool(BaseModel):
    """A work pool of Prefect in which a stage runs, on a machine with a store of its own.

    Attributes:
        name: its name.
        store: folder of the store there, as in the settings: relative to the folder in which the pool's worker runs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    store: Path


class Runtime(BaseModel):
    """Where and how a stage runs. None of this enters a cache key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: Path
    remote: str | None = None
    remote_checkpoint_seconds: float | None = None
    device: str = "auto"
    gpus: int = 1
    token_budget: int | Literal["auto"] = "auto"
    gradient_checkpointing: Literal["auto"] | bool | Literal[2, 4] = "auto"
    memory_gb: float | None = None
    isolation: str = "process"
    checkpoint_seconds: float = 120.0
    run: str = ""
    listeners: tuple[dict[str, Any], ...] = ()
    pool: WorkPool | None = None  # None: where the flow runs


class StageCall(BaseModel):
    """One stage with everything that determines its result. Plain JSON, so the flow can send it to the stage's process.

    Attributes:
        stage: name of the stage, and of its module in `alignment_core.stages`.
        key: cache key, the content address of the result.
        label: label to display, e.g. `sft · stories260k · 3f2a`.
        config: the settings that the stage reads. All of them are hashed into `key`.
        parents: keys of the artifacts that the stage reads, by role.
        inputs: locations (paths, hub ids) on this machine of the inputs whose *content* is hashed into `config`.
        runtime: where and how the stage runs.
        standing: keys of artifacts that the stage reads and that are already in the store, by role. No stage of this
            run makes them.
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

    @property
    def cards(self) -> int:
        """The number of cards that the stage uses, or of processes on a CPU."""
        return self.runtime.gpus if self.stage in ON_SEVERAL_CARDS else 1

    def reads(self) -> dict[str, str]:
        """Return the keys of all artifacts that the stage reads, by role."""
        return {**self.parents, **self.standing}

    def on_this_machine(self) -> StageCall:
        """Return the call as it runs on a machine of its work pool, with the store of that machine.

        Inputs inside the store, such as a base model that was unpacked there, are inside that machine's store then.
        """
        assert self.runtime.pool is not None
        store = self.runtime.pool.store.absolute()
        runtime = self.runtime.model_copy(update={"store": store, "pool": None})
        inputs = _moved(self.inputs, f"{self.runtime.store}/", f"{store}/")
        return self.model_copy(update={"runtime": runtime, "inputs": inputs})


def _moved(value: Any, old: str, new: str) -> Any:
    """Return a JSON value in which paths inside the folder `old` are inside `new`. Both end with a slash."""
    if isinstance(value, str):
        return new + value.removeprefix(old) if value.startswith(old) else value
    if isinstance(value, Mapping):
        return {name: _moved(inner, old, new) for name, inner in value.items()}
    return [_moved(inner, old, new) for inner in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Job:
    """A stage call that is ready to run: the argument of `Stage.run`.

    Attributes:
        call: the call.
        parents: folders of the artifacts that the stage reads, by role.
        out: an empty folder. Its contents at the end are the artifact.
        checkpoints: a folder that is kept if the stage is killed. The same call gets the same folder again.
        progress: receives the progress of the stage.
        ranks: the processes that share the stage. Rank 0 alone fills the artifact.
    """

    call: StageCall
    parents: Mapping[str, Path]
    out: Path
    checkpoints: Path
    progress: Progress
    ranks: Ranks = ALONE


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline.

    Attributes:
        name: as in `StageCall.stage`. It is also the kind of the artifact.
        version: part of every cache key. Increase it when the same settings give a different result.
        run: fills `job.out` and returns the metrics for the manifest, as plain JSON.
    """

    name: str
    version: int
    run: Callable[[Job], dict[str, Any]]


def load_stage(name: str) -> Stage:
    """Return the stage that `alignment_core.stages.<name>` defines as `STAGE`.

    The module is imported only where the stage runs, so the flow's process never loads torch.
    """
    stage: Stage = importlib.import_module(f"alignment_core.stages.{name}").STAGE
    return stage
