"""A run whose models return numbers from a table, so that an objective's arithmetic can be checked by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alignment_core.plugin_api import Rollout, Row, TokenLogps, TokenSequence
from alignment_core.seeds import seed_of
from alignment_core.training.micro_rows import MicroRows
from alignment_core.training.rewards import Rewards
from alignment_core.training.rows import Rows
from alignment_core.training.run import Run
from alignment_core.training.sampled_logps import sampled_logps

Table = Mapping[tuple[int, ...], Sequence[float]]
"""Numbers per completion token, by the ids of prompt and completion."""


@dataclass
class Model:
    """Language, value or reward model that reads its outputs from a table."""

    table: Table
    entropy: float = 0.0
    asked: list[tuple[int, ...]] = field(default_factory=list)

    def _padded(self, sequences: Sequence[TokenSequence]) -> Tensor:
        self.asked += [sequence.ids for sequence in sequences]
        rows = [torch.tensor(self.table[sequence.ids]) for sequence in sequences]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def token_logps(self, sequences: Sequence[TokenSequence], temperature: float = 1.0) -> TokenLogps:
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(s.completion)) for s in sequences], batch_first=True)
        return TokenLogps(self._padded(sequences), mask, mask * self.entropy)

    def logps(self, sequences: Sequence[TokenSequence]) -> Tensor:
        return self._padded(sequences).sum(dim=1)

    def values(self, sequences: Sequence[TokenSequence]) -> Tensor:
        return self._padded(sequences)

    def scores(self, sequences: Sequence[TokenSequence]) -> Tensor:
        return self._padded(sequences)[:, 0]


@dataclass
class ScriptedRun:
    """The part of an `AlignmentRun` that objectives use."""

    policy: Model = field(default_factory=lambda: Model({}))
    reference: Model = field(default_factory=lambda: Model({}))
    reward: Model = field(default_factory=lambda: Model({}))
    value: Model = field(default_factory=lambda: Model({}))
    preferences: Sequence[Row] = ()
    feedback: Sequence[Row] = ()
    prompts: Sequence[Row] = ()
    rollouts: Sequence[Rollout] = ()
    held_out_rollouts: Sequence[Rollout] = ()
    rewarded_by: Rewards = field(default_factory=Rewards)
    judgments: list[list[float]] = field(default_factory=list)
    step: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    reports: list[dict[str, float]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    asked_to_generate: list[tuple[list[str], dict[str, Any]]] = field(default_factory=list)
    kept_at: list[int] = field(default_factory=list)
    restored: int = 0
    seed: int = 0
    sampled: Counter[str] = field(default_factory=Counter)

    shuffled = Run.shuffled
    rewards = Run.rewards
    take_side_metrics = Run.take_side_metrics
    device = torch.device("cpu")

    def random(self, name: str) -> Any:
        import random

        return random.Random(seed_of(self.seed, name))

    def generate(self, prompts: Sequence[Row], **settings: Any) -> Sequence[Rollout]:
        self.asked_to_generate.append(([prompt.id for prompt in prompts], settings))
        held_out = prompts and prompts[0] in self.held_out_prompts
        return self.held_out_rollouts[: len(prompts)] if held_out else self.rollouts

    def sampled_logps(self, rollouts: Sequence[Rollout], temperature: float = 1.0) -> TokenLogps:
        return sampled_logps(self.policy, rollouts, temperature, self.warn)

    @property
    def held_out_prompts(self) -> Sequence[Row]:
        return [rollout.prompt for rollout in self.held_out_rollouts]

    def judge(self, setting: str, rollouts: Sequence[Rollout]) -> list[float]:
        """Return the next of the scripted judgments."""
        return self.judgments.pop(0)

    def prefer(self, setting: str, a: Sequence[Rollout], b: Sequence[Rollout]) -> list[float]:
        """Prefer the longer response by 0.75 to 0.25."""
        lengths = [(len(one.sequence.ids), len(other.sequence.ids)) for one, other in zip(a, b, strict=True)]
        return [0.5 + 0.25 * ((one > other) - (one < other)) for one, other in lengths]

    def keep(self) -> None:
        self.kept_at.append(self.state["rollouts_done"])

    def restore(self) -> None:
        self.restored += 1

    def report(self, metrics: Mapping[str, float]) -> None:
        self.reports.append({**self.take_side_metrics(), **metrics})

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    @property
    def rows(self) -> Rows:
        return Rows((), self.preferences, self.feedback, self.prompts)


def micro(rows: Sequence[Row], denominators: Mapping[str, float], constants: Mapping[str, float] | None = None) -> Any:
    """Return a micro-batch as the training loop makes it."""
    return MicroRows(rows, denominators, constants or {}, torch.device("cpu"))
