"""What is run: one cell is one optimizer of one library with one seed and one set of settings."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from typing import Any

EQUAL: dict[str, Any] = {
    "load_in": "bf16",
    "lora_rank": 16,
    "lora_alpha": 32,
    "schedule": "constant",
    "warmup_fraction": 0.0,
}
"""Settings that do not differ between the cells."""
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "untouched": {},
    "sft": {"learning_rate": 2e-4, "batch_size": 8, "epochs": 1},
    "reward": {"learning_rate": 5e-4, "batch_size": 8, "epochs": 2},
    "dpo": {"learning_rate": 1e-3, "batch_size": 8, "epochs": 1, "beta": 0.1},
    "kto": {"learning_rate": 1e-3, "batch_size": 16, "epochs": 1, "beta": 0.1},
    "ppo": {"learning_rate": 1e-3, "rollouts": 5, "rollout_size": 32, "epochs": 2, "kl_coef": 0.02},
    "grpo": {
        "learning_rate": 1e-3, "rollouts": 15, "rollout_size": 32, "samples": 4, "epochs": 2, "kl_coef": 0.02
    },
    "rloo": {
        "learning_rate": 1e-3, "rollouts": 15, "rollout_size": 32, "samples": 4, "epochs": 2, "kl_coef": 0.02
    },
    "online_dpo": {
        "learning_rate": 1e-3, "rollouts": 15, "rollout_size": 32, "samples": 4, "batch_size": 8, "epochs": 1,
        "beta": 0.1,
    },
}  # fmt: skip
"""Settings of each optimizer, the same for both libraries."""
ON_POLICY = ("ppo", "grpo", "rloo", "online_dpo")
"""Optimizers that sample answers and score them by a reward model, which our side trains for both."""


@dataclass(frozen=True)
class Data:
    """Which data a cell learns from and is judged on.

    Attributes:
        task: a name of `rules.RULES` or `real_data.REAL`.
        pairs: number of comparisons to learn from.
        noise: probability that a comparison is reversed.
        judged: at most as many held-out prompts are answered, and about as many held-out pairs are ordered.
        split: which held-out prompts: `test`, or `validation`, on which settings are chosen.
        new_tokens: longest answer in tokens.
        seed: draws the answers, the comparisons and the mistakes.
    """

    task: str
    pairs: int
    noise: float
    judged: int
    split: str
    new_tokens: int
    seed: int


@dataclass(frozen=True)
class Cell:
    """One line of the results.

    Attributes:
        data: what it learns from.
        side: `ours` or `trl`.
        optimizer: a name of `OPTIMIZERS`.
        settings: its settings where they differ from `OPTIMIZERS` and `EQUAL`.
    """

    data: Data
    side: str
    optimizer: str
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def all_settings(self) -> dict[str, Any]:
        return EQUAL | OPTIMIZERS[self.optimizer] | dict(self.settings)

    @property
    def case(self) -> str:
        """Return what the results file calls this cell: everything that determines its result, readable."""
        found = {**asdict(self.data), "side": self.side, "optimizer": self.optimizer, "settings": self.all_settings}
        if self.optimizer in ON_POLICY:
            found["reward"] = OPTIMIZERS["reward"]
        return json.dumps(found, sort_keys=True)

    @property
    def folder(self) -> str:
        """Return the name of the folder of its adapter."""
        return f"{self.side}-{self.optimizer}-{sha256(self.case.encode()).hexdigest()[:12]}"

    @classmethod
    def from_case(cls, case: str) -> Cell:
        """Return the cell with this `case`, with all of its settings."""
        found = json.loads(case)
        data = Data(**{part.name: found[part.name] for part in fields(Data)})
        return cls(data, found["side"], found["optimizer"], tuple(found["settings"].items()))


def without_seed(case: str) -> str:
    """Return what the cells of all seeds have in common."""
    return json.dumps({name: value for name, value in json.loads(case).items() if name != "seed"})


def data_name(data: Data) -> str:
    """Return the name of the file of a cell's data."""
    text = json.dumps(asdict(data), sort_keys=True)
    return f"{data.task}-seed{data.seed}-{sha256(text.encode()).hexdigest()[:12]}.json"
