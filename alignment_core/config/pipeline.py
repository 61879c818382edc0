"""The settings of a complete run."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from alignment_core.addresses import has_secret
from alignment_core.config.base import Name, Settings
from alignment_core.config.data import DataConfig
from alignment_core.config.evaluation import EvaluationConfig, GateConfig
from alignment_core.config.feedback import ChatConfig, RetrainConfig
from alignment_core.config.model import ModelConfig
from alignment_core.config.places import FeedbackPlace, check_place, expanded, is_reference
from alignment_core.config.remote_address import check_remote
from alignment_core.config.sampling import RankConfig, SampleConfig, VllmConfig
from alignment_core.config.training import RewardConfig, SFTConfig

StageKind = Literal[
    "ingest", "adapter", "sft", "sample", "rank", "reward", "reference", "optimize", "evaluate", "head_to_head", "gate",
    "lm_eval",
]  # fmt: skip
"""The kinds of stages that `where` can move. Several stages of a run may be of one kind, such as its evaluations."""
LARGEST_SEED = 2**53 - 1
"""The largest number that a browser keeps exactly."""
DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?|.*\{\{.*")
"""Matches the names of devices, and a reference to one that is looked up later."""


OTHER_GPUS = ("mps", "xpu", "hip", "rocm", "vulkan", "directml", "xla", "hpu", "npu")
"""PyTorch's names of the GPUs of Apple, Intel and others, and what users call AMD's."""


class PipelineConfig(Settings):
    """A complete run, from raw records to an evaluated adapter."""

    name: str = Field("align", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    """Name of the run. It does not enter any cache key."""
    model: ModelConfig
    """The base model."""
    data: DataConfig
    """The feedback."""
    sft: SFTConfig | None = SFTConfig()
    """Supervised fine-tuning. Null: skipped, for example if the base model is already an instruct model."""
    sample: SampleConfig | None = None
    """Sampling of responses for ranking: within the run if `rank` is set, otherwise with `align sample`. Null: only the
    preferences in the data are used."""
    rank: RankConfig | None = None
    """Ranking of the sampled responses. Needs `sample`. Null: none."""
    reward: RewardConfig = RewardConfig()
    """The reward that optimizers maximize, and the reward model. A reward model is trained only if something needs one
    and `reward.model` is unset."""
    optimizer: dict[str, Any] = Field(default_factory=lambda: {"name": "dpo"})
    """`name` selects an installed optimizer. The other keys are its settings."""
    vllm: VllmConfig | None = None
    """A vLLM server that samples responses for ranking and for the optimizer. Null: the stage itself samples them."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out evaluation."""
    gate: GateConfig | None = None
    """The rules that decide whether the model becomes `candidate`. Null: no gate, and no alias changes."""
    retrain: RetrainConfig = RetrainConfig()
    """Recurring retraining on votes."""
    chat: ChatConfig = ChatConfig()
    """Answers on the `align chat` page."""
    listeners: list[dict[str, Any]] = Field(default_factory=list)
    """Installed listeners, each as `name` plus its settings. They receive the progress and metrics of every stage and
    do not affect results."""
    store: Path = Path("./artifacts")
    """Folder of the artifact store."""
    remote: str | None = None
    """Where machines share their artifacts: `s3://bucket/prefix`, `gs://…`, `az://…`, or `file:///folder` on a shared
    disk. `store` is then this machine's copy. Credentials come from the environment, not from here. Unset: the
    remote that the store was connected to before, if any."""
    remote_checkpoint_seconds: float | None = Field(None, gt=0)
    """Time in seconds between checkpoints that are pushed to the remote, so that another machine can continue a
    training stage if this one is lost. Unset: no checkpoint is pushed."""
    where: dict[StageKind, Name] = Field(default_factory=dict)
    """Prefect work pools in which stages run, by the kind of stage: `{ingest: cpu, optimize: gpu-24gb}`. Stages
    of other kinds run where the flow runs. Needs `remote`. `align deploy` registers the pools."""
    feedback: FeedbackPlace = "./feedback.db"
    """The feedback store: an SQLite file, or `postgresql://user@host/name`. Its password belongs in an environment
    variable or a Secret block, because Prefect shows settings to everyone."""
    guidelines: str | None = None
    """What raters should prefer. `align rank` shows this text before the first prompt."""
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    """Seed of every random stream."""
    device: str = "auto"
    """Device to run on: `auto`, `cpu`, `cuda` or `cuda:N`."""
    gpus: int = Field(1, ge=1, le=64)
    """Number of GPUs of this machine that share a stage. Each runs one process, which holds the complete base model.
    With `device: cpu`, the number of processes. It does not affect results."""
    token_budget: Literal["auto"] | Annotated[int, Field(ge=64)] = "auto"
    """Maximum number of tokens in one forward pass, including padding. `auto`: up to 4096, depending on memory. It does
    not affect results."""
    gradient_checkpointing: Literal["auto"] | bool | Literal[2, 4] = "auto"
    """Recompute activations in the backward pass instead of storing them: in every layer, or in every second or fourth
    one (2, 4). `auto`: in as many as memory requires."""
    memory_gb: float | None = Field(None, gt=0)
    """Memory in GiB that a stage may plan to use on its device, and on a GPU may use at most. Unset: 90 % of the memory
    that is free when it starts."""
    isolation: Literal["process", "inline"] = "process"
    """Run each stage in a separate process, or `inline` in the flow's process (for tests)."""
    checkpoint_seconds: float = Field(120, gt=0)
    """Time between checkpoints in seconds, and so the most work that is lost if a stage is killed."""

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if device.partition(":")[0] in OTHER_GPUS:
            raise ValueError(f"{device!r} is not supported: only NVIDIA GPUs are. Set cpu or auto")
        if not DEVICE.fullmatch(device):
            raise ValueError(f"unknown device {device!r}, expected auto, cpu, cuda or cuda:N")
        return device

    @field_validator("store", mode="before")
    @classmethod
    def _is_path(cls, store: object) -> object:
        return check_place(store) if isinstance(store, str) else store

    @field_validator("store")
    @classmethod
    def _is_folder(cls, store: Path) -> Path:
        if ":/" in str(store):  # what is left of :// in a path
            raise ValueError("the store is a folder on this machine, not an address")
        if not is_reference(str(store)) and has_secret(str(store)):
            raise ValueError("the path looks like an address with a password, and would be shown everywhere")
        store = expanded(store)
        there = next((path for path in (store, *store.parents) if os.path.lexists(path)), None)
        if there is not None and not there.is_dir():
            raise ValueError(f"{there} is not a folder")
        return store

    @field_validator("remote")
    @classmethod
    def _is_shared_address(cls, remote: str | None) -> str | None:
        # A reference is replaced where the flow runs.
        return remote if remote is None or is_reference(remote) else check_remote(remote)

    @model_validator(mode="after")
    def _cards_are_free_to_choose(self) -> PipelineConfig:
        if self.gpus > 1 and ":" in self.device:
            raise ValueError(f"device {self.device} is one card: set `device: cuda` to use {self.gpus}")
        if self.gpus > 1 and self.isolation == "inline":
            raise ValueError("several cards need processes of their own: leave out `isolation: inline`, or `gpus`")
        return self

    @model_validator(mode="after")
    def _vllm_loads_the_adapter(self) -> PipelineConfig:
        if self.vllm is not None and self.model.lora.dora:
            raise ValueError("vLLM loads no DoRA adapters: leave out `vllm` or `model.lora.dora`")
        return self
