"""Runs of the training core as the stages open them, and an objective that is watched."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from alignment_core.config import LoraConfig
from alignment_core.models.roles.logps import Budget
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import LossOutput, StepBatch
from alignment_core.progress import Progress
from alignment_core.registry import load_registry
from alignment_core.stages.reward import BradleyTerry
from alignment_core.stages.sft import SFT
from alignment_core.training.contract import Objective
from alignment_core.training.rewards import Rewards
from alignment_core.training.rows import Rows
from alignment_core.training.run import Run
from gpu_cases.inputs.token_data import NEVER, vocabulary

TASKS = ("sft", "reward", "dpo", "kto", "ppo")
LORA = LoraConfig()
LEARNING_RATE = 1e-4
COUNTED = {
    "sft": ("demonstration",), "reward": ("chosen", "rejected"), "dpo": ("chosen", "rejected"), "kto": ("response",),
    "ppo": ("response",),
}  # fmt: skip
"""Sequences of a row that count as learned tokens. Each one counts in full, also where a prompt is shared."""


def make_objective(task: str, **settings: Any) -> Objective:
    """Return the objective of a stage, or the optimizer that the registry has under this name."""
    if task == "sft":
        return SFT(**settings)
    if task == "reward":
        return BradleyTerry(**settings)
    return load_registry().optimizer({"name": task, **settings})


def open_run(
    task: str,
    model: PreTrainedModel,
    rows: Rows,
    progress: Progress,
    *,
    budget: int,
    stop_ids: tuple[int, ...] = NEVER,
    cached_reference: Mapping[str, float] | None = None,
) -> Run:
    """Return a run with the roles that the stage has after SFT. Adapters and heads are drawn on the CPU."""
    roles = Roles(model, model.name_or_path)
    roles.add_new("policy", LORA, 0)
    _disturb(roles, "policy", 1)
    if task in ("dpo", "kto", "ppo"):
        roles.add_copy("reference", of="policy")
    if task in ("reward", "ppo"):
        roles.add_copy("reward", of="policy")
        _disturb(roles, "reward", 2)
        width = model.config.get_text_config().hidden_size
        roles.add_head("reward", 0.1 * torch.randn(1, width, generator=torch.Generator().manual_seed(3)))
    if task == "ppo":
        roles.add_copy("value", of="reward")
    if task != "sft":  # otherwise the policy would be equal to its reference, and half of the loss zero
        _disturb(roles, "policy", 4)
    roles.train_only({"reward": ["reward"], "ppo": ["policy", "value"]}.get(task, ["policy"]))
    rewards, cached = Rewards() if task == "ppo" else None, cached_reference or {}
    return Run(roles, rows, vocabulary(stop_ids), Budget(budget), 0, progress, cached, rewarded_by=rewards)


def _disturb(roles: Roles, role: str, seed: int) -> None:
    """Add noise to the role's adapter, like the effect of training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in roles.adapter_parameters([role]):
            weight.add_(0.01 * torch.randn(weight.shape, generator=generator).to(weight.device))


@dataclass
class Watched:
    """An objective that counts the tokens of each step, and the time that its batches take."""

    objective: Any
    task: str
    tokens: list[int] = field(default_factory=list)
    micro_batches: int = 0
    preparing: list[float] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def batches(self, run: Run) -> Iterator[StepBatch]:
        inner = self.objective.batches(run)
        while True:
            began = now(run.device)
            batch = next(inner, None)
            if batch is None:
                return
            self.preparing.append(now(run.device) - began)
            sequences = (row.sequences[name] for row in batch.rows for name in COUNTED[self.task])
            self.tokens.append(sum(len(sequence.ids) for sequence in sequences))
            yield batch

    def loss(self, run: Run, micro: Any) -> LossOutput:
        self.micro_batches += 1
        output: LossOutput = self.objective.loss(run, micro)
        return output


@dataclass
class Clock:
    """Progress that notes the time after each step, and stops the run after `last` steps."""

    device: torch.device
    last: int | None = None
    ended: list[float] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    stopping: bool = False

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        self.ended.append(now(self.device))
        self.stopping = done == self.last

    def log(self, message: str) -> None:
        self.messages.append(message)

    def warn(self, message: str) -> None:
        self.messages.append(message)


def now(device: torch.device) -> float:
    """Return the time in seconds when the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
