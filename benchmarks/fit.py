"""Predict which token budget fits which card, for public models and each method. Nothing here is measured.

    OMP_NUM_THREADS=1 python benchmarks/fit.py

The table is written into `docs/how-to/fit-a-model-to-a-card.md`, which says what is assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from public_models import MODELS, public_config

from alignment_core.config import LoraConfig
from alignment_core.forecast.card import free_memory
from alignment_core.models.memory.architecture import Architecture
from alignment_core.models.memory.dry_run import DryRun
from alignment_core.plugin_api import Row, TokenSequence
from alignment_core.stages.sft import SFT
from alignment_core.training.contract import Objective
from alignment_core.training.demand import Layout, trace_training
from alignment_core.training.memory import MemorySettings, choose_memory_settings, share_of
from alignment_core.training.rows import Rows
from alignment_plugins.dpo import DPO
from alignment_plugins.kto import KTO
from alignment_plugins.ppo import PPO

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "fit-a-model-to-a-card.md"
BEGIN, END = "<!-- fit -->", "<!-- /fit -->"
CARDS = (8, 12, 16, 24)
LENGTH, PROMPT, RESPONSE, COUNT = 1024, 256, 256, 64
GIB = 2**30


@dataclass(frozen=True)
class Method:
    """A method with its objective and the roles of its stage."""

    objective: Callable[[], Objective]
    adapters: tuple[str, ...]
    heads: tuple[str, ...] = ()
    trained: tuple[str, ...] = ("policy",)


METHODS = {
    "SFT": Method(lambda: SFT(batch_size=32), ("policy",)),
    "DPO": Method(lambda: DPO(batch_size=32), ("policy", "reference")),
    "KTO": Method(lambda: KTO(batch_size=32), ("policy", "reference")),
    "PPO": Method(
        lambda: PPO(batch_size=32, rollout_size=COUNT, rollouts=1, max_new_tokens=RESPONSE),
        ("policy", "reference", "reward", "value"),
        ("reward", "value"),
        ("policy", "value"),
    ),
}


class Remembered(DryRun):
    """A dry run that does not measure the same passes twice, for several cards."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.training = cache(super().training)  # type: ignore[method-assign]
        self.reading = cache(super().reading)  # type: ignore[method-assign]
        self.footprint = cache(super().footprint)  # type: ignore[method-assign]


def rows() -> Rows:
    """Return rows of every kind, each with its own prompt."""

    def sequence(number: int, word: int, length: int = LENGTH) -> TokenSequence:
        return TokenSequence((*[number + 1] * PROMPT, *[word] * (length - PROMPT)), PROMPT)

    pairs = [{"chosen": sequence(i, 1), "rejected": sequence(i, 2)} for i in range(COUNT)]
    judged = [{"response": sequence(i, 1), "mismatched": sequence(i, 2)} for i in range(COUNT)]
    return Rows(
        [Row(f"{i}", {"demonstration": sequence(i, 1)}) for i in range(COUNT)],
        [Row(f"{i}", pair, {"margin": 0.0}) for i, pair in enumerate(pairs)],
        [Row(f"{i}", both, {"desirable": float(i % 2), "weight": 1.0}) for i, both in enumerate(judged)],
        [Row(f"{i}", {"prompt": sequence(i, 1, PROMPT)}) for i in range(COUNT)],
    )


def fits(model: str, method: Method) -> Iterator[MemorySettings]:
    """Yield the settings that are chosen for each card."""
    lora = LoraConfig()
    device = torch.device("cuda")
    dry_run = Remembered(
        Architecture(public_config(model), "nf4", lora, method.adapters, method.heads, method.trained, device)
    )

    @cache
    def demand(tokens: int) -> Any:
        return trace_training(method.objective(), rows(), Layout(True, 0), tokens, trained=method.trained)

    for card in CARDS:
        available = share_of(free_memory(card), None)
        yield choose_memory_settings(dry_run, demand, available, token_budget=None, gradient_checkpointing=None)


def cell(found: MemorySettings) -> str:
    recomputing = " ↻" if found.gradient_checkpointing else ""
    return f"{found.token_budget}{recomputing}, {found.needs.total / GIB:.1f}" if found.fits else "–"


def table() -> Iterator[str]:
    yield "| model | method | " + " | ".join(f"{card} GB" for card in CARDS) + " |"
    yield "| --- | --- |" + " --- |" * len(CARDS)
    for model in MODELS:
        for name, method in METHODS.items():
            line = f"| {model} | {name} | " + " | ".join(map(cell, fits(model, method))) + " |"
            print(line, flush=True)
            yield line


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    (before, old), lines = text.split(BEGIN), "\n".join(table())
    PAGE.write_text(f"{before}{BEGIN}\n\n{lines}\n\n{END}{old.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
