"""Runs of every objective on the tiny model, with a listener that may ask to stop."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine import ENOUGH, LORA, PAD, STOP, open_roles, saved_adapter, sequences
from torch import Tensor

from alignment_core.config import LoraConfig
from alignment_core.models.roles.logps import Budget
from alignment_core.plugin_api import Row, TokenSequence
from alignment_core.stages.reward import BradleyTerry
from alignment_core.stages.sft import SFT
from alignment_core.training.contract import Objective
from alignment_core.training.loop import train
from alignment_core.training.rewards import Rewards
from alignment_core.training.rows import Rows, Vocabulary
from alignment_core.training.run import Run
from alignment_plugins.dpo import DPO
from alignment_plugins.grpo import GRPO
from alignment_plugins.kto import KTO
from alignment_plugins.online_dpo import OnlineDPO
from alignment_plugins.ppo import PPO
from alignment_plugins.rloo import RLOO


class Killed(BaseException):
    """Raised by tests in place of a killed process."""


@dataclass
class Listener:
    """Progress that records everything and asks to stop from the `stop_at`-th check on."""

    stop_at: float = float("inf")
    kill_after_step: float = float("inf")
    looks: int = 0
    steps: list[tuple[int, int, dict[str, float]]] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def stopping(self) -> bool:
        self.looks += 1
        return self.looks >= self.stop_at

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        self.steps.append((done, total, dict(metrics or {})))
        if done >= self.kill_after_step:
            raise Killed

    def log(self, message: str) -> None:
        self.logs.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


class WordTokenizer:
    """Decodes a token as its number."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))


def preference_rows(count: int, seed: int = 0) -> list[Row]:
    """Return preference pairs."""
    rng = random.Random(seed)
    rows = []
    for i, chosen in enumerate(sequences(count, seed)):
        rejected = (*chosen.prompt, *(rng.randrange(3, 250) for _ in range(rng.randint(1, 14))))
        pair = {"chosen": chosen, "rejected": TokenSequence(rejected, chosen.start)}
        rows.append(Row(f"pair-{i}", pair, {"margin": float(rng.randint(0, 3))}))
    return rows


def feedback_rows(good: int, bad: int, seed: int = 0, *, votes: float = 1.0) -> list[Row]:
    """Return labelled responses, the good ones first. Each is mismatched with the next row's response."""
    found = sequences(good + bad, seed)
    rows = []
    for i, sequence in enumerate(found):
        other = found[(i + 1) % len(found)].completion
        both = {"response": sequence, "mismatched": TokenSequence((*sequence.prompt, *other), sequence.start)}
        rows.append(Row(f"feedback-{i}", both, {"desirable": float(i < good), "weight": votes}))
    return rows


def prompt_rows(count: int, seed: int = 0) -> list[Row]:
    """Return prompts for sampling."""
    found = [sequence.prompt for sequence in sequences(count, seed)]
    return [Row(f"prompt-{i}", {"prompt": TokenSequence(ids, len(ids))}) for i, ids in enumerate(found)]


def held_out_rows(count: int) -> list[Row]:
    """Return held-out prompts."""
    return [Row(f"held-out-{row.id}", row.sequences) for row in prompt_rows(count, seed=9)]


def demonstration_rows(count: int, seed: int = 0) -> list[Row]:
    """Return demonstrations. Every third one has a mask."""
    rows = []
    for i, sequence in enumerate(sequences(count, seed)):
        mask = None if i % 3 else tuple(j % 2 == 0 for j in range(len(sequence.completion)))
        rows.append(Row(f"demonstration-{i}", {"demonstration": TokenSequence(sequence.ids, sequence.start, mask)}))
    return rows


STEPS = {"learning_rate": 1e-2, "batch_size": 4, "epochs": 2}
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "sft": lambda: SFT(**STEPS),
    "reward": lambda: BradleyTerry(**STEPS),
    "dpo": lambda: DPO(**STEPS, label_smoothing=0.1, sft_weight=0.1),
    "kto": lambda: KTO(**STEPS),
    "ppo": lambda: PPO(
        learning_rate=1e-2,
        batch_size=3,
        epochs=2,
        rollouts=3,
        rollout_size=6,
        max_new_tokens=6,
        kl_target=3.0,
        step_kl=None,
        kl_ceiling=1e6,
        held_out_every=2,
    ),
}
GROUPS: dict[str, Any] = {
    "learning_rate": 1e-2, "batch_size": 4, "epochs": 2, "rollouts": 3, "rollout_size": 8, "samples": 4,
    "max_new_tokens": 6, "step_kl": None, "kl_ceiling": 1e6, "held_out_every": 2,
}  # fmt: skip
GROUP_OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "grpo": lambda: GRPO(**GROUPS, loss_mean="sequence"),
    "rloo": lambda: RLOO(**GROUPS),
    "online_dpo": lambda: OnlineDPO(**GROUPS | {"batch_size": 1}),
}
"""Objectives that compare several responses to a prompt."""


@dataclass
class World:
    """A base model with an SFT and a reward adapter, from which runs are opened as stages do it."""

    base: Path
    sft: Path
    reward: Path
    lora: LoraConfig = LORA

    def open(
        self, kind: str, *, progress: Listener | None = None, budget: int = ENOUGH, rows: Rows | None = None
    ) -> Run:
        """Open a run of this kind of objective, as a new process would."""
        roles = open_roles(self.base)
        trained = {"reward": ["reward"], "ppo": ["policy", "value"]}.get(kind, ["policy"])
        if kind == "sft":
            roles.add_new("policy", self.lora, 0)
        elif kind == "reward":
            roles.add_saved("policy", self.sft)
            roles.add_saved("reward", self.sft)
            roles.add_head("reward")
        else:
            roles.add_saved("policy", self.sft)
            roles.add_saved("reference", self.sft)
        rewarded = kind == "ppo" or kind in GROUP_OBJECTIVES
        if rewarded:
            roles.add_saved("reward", self.reward)
        if kind == "ppo":
            roles.add_copy("value", of="reward")
        roles.train_only(trained)
        return Run(
            roles=roles,
            rows=rows
            or Rows(demonstration_rows(10), preference_rows(10), feedback_rows(7, 3), prompt_rows(8), held_out_rows(4)),
            vocabulary=Vocabulary(WordTokenizer(), PAD, tuple(range(STOP, 40))),
            budget=Budget(budget),
            seed=5,
            progress=progress or Listener(),
            rewarded_by=Rewards() if rewarded else None,
        )


def make_world(base: Path, folder: Path, lora: LoraConfig = LORA) -> World:
    """Save the adapters and return the `World`."""
    sft = saved_adapter(base, folder / "sft", seed=1, lora=lora)
    return World(base, sft, saved_adapter(base, folder / "reward", seed=2, head=True, lora=lora), lora)


def learn(objective: Objective, run: Run, folder: Path, *, every: float = 1e9) -> Run:
    """Train until the end or an exception, and return the run."""
    train(objective, run, folder, every)
    return run


def weights_of(run: Run) -> dict[str, Tensor]:
    """Return a copy of the trained weights."""
    return {name: parameter.detach().clone() for name, parameter in run.roles.parameters().items()}


def gradients_of(run: Run) -> dict[str, Any]:
    """Return the gradients of the last step."""
    return {name: parameter.grad for name, parameter in run.roles.parameters().items()}
