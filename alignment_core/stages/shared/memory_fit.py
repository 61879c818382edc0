"""Fit a training stage into the free memory at its start."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from alignment_core.config import LoraConfig
from alignment_core.execution.stage import Runtime
from alignment_core.models.memory.architecture import Architecture
from alignment_core.models.memory.dry_run import DryRun
from alignment_core.models.passes.batching import largest_setting
from alignment_core.models.roles.classifier import ClassifierReward
from alignment_core.models.roles.shared_base import Roles
from alignment_core.own_code import OWN_CODE
from alignment_core.training.checkpoint import saved_budget
from alignment_core.training.contract import Objective
from alignment_core.training.demand import Layout, trace_training
from alignment_core.training.memory import AUTO_BUDGET, MemorySettings, available_memory, choose_memory_settings
from alignment_core.training.run import Run
from alignment_core.training.snapshots import role_of

ABUNDANT = 0.5
"""If the upper bound of the needed memory is below this share of the free memory, no dry run is needed."""
KEPT_PER_FEATURE = 16
"""Bytes per input and output of a linear layer: four float32 copies, more than any architecture stores."""


def initial_token_budget(runtime: Runtime) -> int:
    """Return the initial token budget."""
    return AUTO_BUDGET if runtime.token_budget == "auto" else runtime.token_budget


def fit_to_memory(
    objective: Objective,
    run: Run,
    runtime: Runtime,
    config: dict[str, Any],
    checkpoints: Path,
    external_reward: PretrainedConfig | None = None,
) -> None:
    """Set the token budget and gradient checkpointing of a run, and log the choice with its reason.

    A run that resumes from a checkpoint keeps its budget, so it gives the same result as an uninterrupted run. With an
    external reward model, the dry run is always made, because the quick upper bound does not include its layers.
    """
    budget: int | None = None if runtime.token_budget == "auto" else runtime.token_budget
    if budget is None:
        budget = saved_budget(checkpoints, run.progress.warn, run.budget.ranks)
    recompute = None if runtime.gradient_checkpointing == "auto" else runtime.gradient_checkpointing
    available = memory_left_on_all(run, runtime.memory_gb)
    bound = _generous_bound(run.roles, budget or AUTO_BUDGET, config["max_length"])
    if bound < ABUNDANT * available and external_reward is None:
        found: tuple[int, int] = (budget or AUTO_BUDGET, recompute or False)
        why = f"{_gib(available)} available, far more than needed"
    else:
        choice = choose_for_run(objective, run, config, available, budget, recompute, external_reward)
        found = (choice.token_budget, choice.gradient_checkpointing)
        why = f"predicted memory {_gib(choice.needs.total)} including loaded models, {_gib(available)} still available"
        if not choice.fits:
            run.warn(f"this stage may run out of memory: {why}")
    run.budget.tokens = found[0]
    run.roles.checkpoint_layers(found[1])
    run.progress.log(f"token budget {found[0]}, gradient checkpointing {_which_layers(found[1])}; {why}")


def memory_left_on_all(run: Run, limit: float | None) -> int:
    """Return what is left on the rank with the least memory, so that all ranks choose the same settings."""
    ranks = run.budget.ranks
    ranks.gather("loaded models", None)  # no rank measures while another one still loads
    return min(ranks.gather("memory", memory_left(run, limit)))


def memory_left(run: Run, limit: float | None) -> int:
    """Return the bytes that a run may still be planned to take, beside the models that it has loaded.

    Args:
        limit: GiB that the stage may take in all; None for no limit.
    """
    external = run.external_reward
    modules = [run.roles.model, run.roles.heads, *([external.model] if isinstance(external, ClassifierReward) else [])]
    held = sum(weight.nbytes for module in modules for weight in module.parameters())
    rest = None if limit is None else max(0.0, limit - held / 2**30)
    return available_memory(run.device, rest, run.budget.ranks.size)


def choose_for_run(
    objective: Objective,
    run: Run,
    config: dict[str, Any],
    available: int,
    budget: int | None,
    recompute: int | None,
    external_reward: PretrainedConfig | None,
) -> MemorySettings:
    """Return the memory settings with which a run fits, and the predicted memory with them, from a dry run.

    Args:
        config: the settings of the stage: `load_in`, `lora`, and the models' own code.
        available: bytes that the run may take beyond its loaded models.
        budget: the token budget; None to choose it.
        recompute: whether backward recomputes the layers; None to choose it.
        external_reward: configuration of a reward model that is a separate model; None if there is none.
    """
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
            roles.reach,
            tuple(map(role_of, run.snapshots.names)),
            sum(weight.numel() for weight in run.parameters.values()),
            config.get(OWN_CODE),
            config.get("reward_model", {}).get(OWN_CODE),
        )
    )
    rehearsed = partial(
        trace_training,
        objective,
        run.rows,
        Layout(roles.packs, roles.call_cost, roles.reach, roles.width),
        trained=roles.trained,
        seed=run.seed,
        cached_reference=bool(run.cached_reference),
        rewarded=roles.has("reward") or run.external_reward is not None,
    )
    return choose_memory_settings(
        dry_run,
        rehearsed,
        available,
        token_budget=budget,
        gradient_checkpointing=recompute,
        present=lambda footprint: footprint.base + footprint.adapters + footprint.external_reward,
    )


def _generous_bound(roles: Roles, budget: int, max_length: int) -> int:
    """Return an upper bound in bytes of the memory of training without the base model, from the layer sizes alone."""
    # Quantized weights are a single column, so their shapes cannot be used.
    linear = [m for m in roles.model.modules() if isinstance(m, nn.Linear | Conv1D)]
    features = sum(m.nx + m.nf if isinstance(m, Conv1D) else m.in_features + m.out_features for m in linear)
    config = roles.model.config.get_text_config()
    features += 0 if roles.separable else 2 * config.vocab_size
    heads = largest_setting(config, "num_attention_heads") or 0
    attention = 0 if roles.packs else heads * max_length * config.num_hidden_layers
    tokens = max(budget, 4 * max_length)
    learned = sum(p.numel() for p in roles.parameters().values())
    kept = KEPT_PER_FEATURE * (features + attention) * tokens * max(1, len(roles.trained))
    return kept + 16 * learned + 2**28


def _which_layers(every: int) -> str:
    return {0: "off", 1: "on"}.get(every, f"in one of {every} layers")


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
