"""Fit a training stage into the memory that is free when it starts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from alignment_core.config import LoraConfig
from alignment_core.models.dry_run import Architecture, DryRun
from alignment_core.models.roles import Roles
from alignment_core.stages.base import Runtime
from alignment_core.training.checkpoint import saved_budget
from alignment_core.training.loop import Objective
from alignment_core.training.memory import AUTO_BUDGET, Choice, available_memory, choose
from alignment_core.training.rehearsal import Layout, rehearse
from alignment_core.training.run import Run

ABUNDANT = 0.5
"""Share of the free memory below which even a generous bound needs no dry run to be believed."""
KEPT_PER_FEATURE = 16
"""Bytes for each input and output of a linear layer: four float32 copies, more than any architecture keeps."""


def budget_of(runtime: Runtime) -> int:
    """The token budget to begin with."""
    return AUTO_BUDGET if runtime.token_budget == "auto" else runtime.token_budget


def fit_to_memory(
    objective: Objective,
    run: Run,
    runtime: Runtime,
    config: dict[str, Any],
    checkpoints: Path,
    external_reward: PretrainedConfig | None = None,
) -> None:
    """Set the run's token budget and gradient checkpointing, and say which and why.

    A training that goes on from a checkpoint keeps its budget, so that it ends as it would have. With an external
    reward model, whose layers the quick bound does not know, the dry run is always made.
    """
    budget: int | None = None if runtime.token_budget == "auto" else runtime.token_budget
    if budget is None:
        budget = saved_budget(checkpoints, run.progress.warn)
    recompute = None if runtime.gradient_checkpointing == "auto" else runtime.gradient_checkpointing
    available = available_memory(run.device, runtime.memory_gb)
    bound = _generous_bound(run.roles, budget or AUTO_BUDGET, config["max_length"])
    if bound < ABUNDANT * available and external_reward is None:
        found, why = (budget or AUTO_BUDGET, bool(recompute)), f"memory abounds: {_gib(available)} may be taken"
    else:
        choice = _choose(objective, run, config, available, budget, recompute, external_reward)
        found = (choice.token_budget, choice.gradient_checkpointing)
        why = f"{_gib(choice.needs.total)} predicted for the models, {_gib(available)} more than now may be taken"
        if not choice.fits:
            run.warn(f"this stage may run out of memory: {why}")
    run.budget.tokens = found[0]
    run.roles.checkpoint_layers(found[1])
    run.progress.log(f"token budget {found[0]}, gradient checkpointing {'on' if found[1] else 'off'}; {why}")


def _choose(
    objective: Objective,
    run: Run,
    config: dict[str, Any],
    available: int,
    budget: int | None,
    recompute: bool | None,
    external_reward: PretrainedConfig | None,
) -> Choice:
    roles = run.roles
    dry_run = DryRun(
        Architecture(
            roles.model.config,
            config["load_in"],
            LoraConfig.model_validate(config["lora"]),
            roles.adapters,
            tuple(roles.heads),
            roles.trained,
            run.device,
            roles.packs,
            external_reward,
            objective.adamw,
        )
    )
    rehearsed = partial(
        rehearse,
        objective,
        run.rows,
        Layout(roles.packs, roles.call_cost),
        trained=roles.trained,
        seed=run.seed,
        cached_reference=bool(run.cached_reference),
    )
    return choose(
        dry_run,
        rehearsed,
        available,
        token_budget=budget,
        gradient_checkpointing=recompute,
        present=lambda footprint: footprint.base + footprint.adapters + footprint.external_reward,
    )


def _generous_bound(roles: Roles, budget: int, max_length: int) -> int:
    """More bytes than training takes beside the base, from nothing but the sizes of the layers."""
    # Not by the shapes of the weights: quantised ones are one long column.
    linear = [m for m in roles.model.modules() if isinstance(m, nn.Linear | Conv1D)]
    features = sum(m.nx + m.nf if isinstance(m, Conv1D) else m.in_features + m.out_features for m in linear)
    config = roles.model.config.get_text_config()
    features += 0 if roles.separable else 2 * config.vocab_size
    attention = 0 if roles.packs else config.num_attention_heads * max_length * config.num_hidden_layers
    tokens = max(budget, 4 * max_length)
    learned = sum(p.numel() for p in roles.parameters().values())
    kept = KEPT_PER_FEATURE * (features + attention) * tokens * max(1, len(roles.trained))
    return kept + 16 * learned + 2**28


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
