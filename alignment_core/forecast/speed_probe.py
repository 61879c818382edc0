"""Measure how fast this machine runs a model, with a few short passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from alignment_core.config import LoadIn, LoraConfig
from alignment_core.models.base.loading import load_base
from alignment_core.models.generation.choice import Sampling
from alignment_core.models.generation.sampling import generate
from alignment_core.models.roles.logps import Budget, LanguageModel
from alignment_core.models.roles.shared_base import Roles
from alignment_core.own_code import OWN_CODE
from alignment_core.plugin_api import TokenSequence
from alignment_core.training.demand import Demand

SHORT, LONG, ROWS, NEW_TOKENS = 128, 1024, 2, 4
QUICK_SECONDS = 0.5
"""A short pass that takes less time consists mostly of kernel launches, so a long pass is timed as well."""
RECOMPUTED = 1 / 2
"""Additional time if backward recomputes every layer: 3 forward passes instead of 2. Backward through frozen weights
costs as much as 1, because it needs no gradients of the weights."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds per unit of each kind of work.

    Attributes:
        start: imports and loading of the model.
        learn: forward and backward pass of one token.
        read: forward pass of one token.
        token_step: generation of one token for every response of a small batch.
    """

    start: float
    learn: float
    read: float
    token_step: float

    def seconds(self, demand: Demand, gradient_checkpointing: int) -> float:
        """Return the wall time of a stage in seconds, if it recomputes one of so many layers (0: none)."""
        share = 1 / gradient_checkpointing if gradient_checkpointing else 0
        learn = self.learn * (1 + RECOMPUTED * share)
        # A generation step costs kernel launches plus one token per row. A short probe cannot separate them, so the
        # larger cost is used.
        generated = demand.responses * demand.response_tokens * max(self.token_step / ROWS, self.read)
        return self.start + learn * demand.learned + self.read * demand.read + generated


def measure_speed(
    model: Mapping[str, Any], load_in: LoadIn, lora: LoraConfig, device: torch.device, imports: float
) -> Speed:
    """Load the model and time one pass of each kind, after a warmup pass.

    Args:
        model, load_in, lora, device: the model to load, its precision, its adapter and the device.
        imports: time in seconds that a stage's process needs for its imports.
    """
    started = time.monotonic()
    own_code = model.get(OWN_CODE)
    base = load_base(model["path"], revision=model["revision"], load_in=load_in, device=device, own_code=own_code)
    roles = Roles(base, model["path"])
    roles.add_new("policy", lora, 0)
    roles.train_only(["policy"])
    start = imports + time.monotonic() - started
    policy = LanguageModel(roles, "policy", 0, Budget(LONG))

    def sequences(tokens: int) -> list[TokenSequence]:
        return [TokenSequence((3,) * (tokens // ROWS), 1) for _ in range(ROWS)]

    def learn(tokens: int) -> None:
        with roles.training():
            policy.logps(sequences(tokens)).sum().backward()  # type: ignore[no-untyped-call]

    def read(tokens: int) -> None:
        with torch.no_grad():
            policy.logps(sequences(tokens))

    def speak(tokens: int) -> None:
        prompts = [TokenSequence(sequence.ids, len(sequence.ids)) for sequence in sequences(SHORT)]
        generate(
            roles, "policy", prompts, noise_keys=["a", "b"], sampling=Sampling(tokens), stop_ids=(), pad_id=0,
            budget=Budget(LONG), on_step=lambda _: None,
        )  # fmt: skip

    longest = LONG if _seconds(learn, SHORT) < QUICK_SECONDS else SHORT
    return Speed(
        start,
        learn=_seconds(learn, longest) / longest,
        read=_seconds(read, longest) / longest,
        token_step=_seconds(speak, NEW_TOKENS) / NEW_TOKENS,
    )


def _seconds(work: Callable[[int], None], size: int) -> float:
    """Return the time of the second of two runs. The first one includes one-time costs."""
    work(size)
    started = time.monotonic()
    work(size)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - started
