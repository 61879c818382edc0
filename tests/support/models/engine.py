"""Small real models and rows for tests of the training engine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment_core.config import LoadIn, LoraConfig
from alignment_core.models.base.loading import load_base
from alignment_core.models.roles.logps import Budget, LanguageModel, ScalarModel
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import TokenSequence

CPU = torch.device("cpu")
PAD, STOP = 0, 2
LORA = LoraConfig(rank=4, alpha=8)
ENOUGH = 1_000_000
"""A token budget that never splits anything."""


def sequences(
    count: int, seed: int = 0, *, vocabulary: int = 250, prompt: int = 12, completion: int = 14
) -> list[TokenSequence]:
    """Return random sequences of 1 to `prompt` and 1 to `completion` tokens, without special tokens."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        start, length = rng.randint(1, prompt), rng.randint(1, completion)
        found.append(TokenSequence(tuple(rng.randrange(3, vocabulary) for _ in range(start + length)), start))
    return found


def open_roles(path: Path, load_in: LoadIn = "fp32") -> Roles:
    """Load a base without roles."""
    return Roles(load_base(str(path), revision=None, load_in=load_in, device=CPU), str(path))


def disturb(roles: Roles, role: str, seed: int, scale: float = 0.1) -> None:
    """Add noise to every adapter weight and the head of a role, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    weights = [parameter for _, parameter in roles.adapter_parameters([role])]
    if role in roles.heads:
        weights.append(roles.head_of(role).weight)
    with torch.no_grad():
        for weight in weights:
            weight += scale * torch.randn(weight.shape, generator=generator)


def saved_adapter(
    path: Path, folder: Path, *, load_in: LoadIn = "fp32", lora: LoraConfig = LORA, seed: int = 1, head: bool = False
) -> Path:
    """Save an adapter that differs from the base, as a stage saves it."""
    roles = open_roles(path, load_in)
    roles.add_new("saved", lora, seed)
    if head:
        roles.add_head("saved")
    disturb(roles, "saved", seed)
    roles.save("saved", folder)
    return folder


def language(roles: Roles, role: str, budget: int = ENOUGH) -> LanguageModel:
    """Return a role as a language model."""
    return LanguageModel(roles, role, PAD, Budget(budget))


def scalar(roles: Roles, role: str, budget: int = ENOUGH) -> ScalarModel:
    """Return a role as a reward or value model."""
    return ScalarModel(roles, role, PAD, Budget(budget))


def naive_token_logps(model: Any, sequence: TokenSequence, temperature: float = 1.0) -> Tensor:
    """Return the log-probability of every completion token from the model's full logits, without padding."""
    ids = torch.tensor([sequence.ids], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0].double() / temperature
    logps = torch.log_softmax(logits, dim=-1)
    picked: Tensor = logps[:-1].gather(1, ids[0, 1:, None])[:, 0]
    return picked[sequence.start - 1 :]


def naive_logps(model: Any, found: Sequence[TokenSequence]) -> Tensor:
    """Return the summed log-probabilities of complete completions."""
    return torch.stack([naive_token_logps(model, sequence).sum() for sequence in found])
