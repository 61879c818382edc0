"""How much memory a stage needs, and the token budget and gradient checkpointing with which it fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from alignment_core.models.generation.choice import CHOSEN_TOGETHER
from alignment_core.models.memory.architecture import Footprint
from alignment_core.models.memory.dry_run import DryRun
from alignment_core.models.roles.logps import SMALLEST_BUDGET
from alignment_core.processes.free_memory import free_on_cpu, share_of
from alignment_core.training.demand import Demand

AUTO_BUDGET = 4096
"""Tokens in one pass if there is enough memory. More makes nothing faster on current desktop hardware."""
LEAST_KEPT = 1024
"""Token budget below which recomputing activations costs less than smaller passes."""
SOME_LAYERS = (4, 2)
"""Between keeping all activations and recomputing all: recompute every fourth or every second layer. The dry run's
numbers of layers are multiples of both."""
LOGIT_BYTES, CHOOSING_BYTES = 8, 32
"""Bytes per logit of a generated batch, including its float32 copy, and bytes per logit from which tokens are chosen at
a time: float32 twice, float64 probabilities (float32 on a GPU), and copies of them (`choice.choose`)."""


@dataclass(frozen=True, slots=True)
class MemoryNeeds:
    """Predicted memory of a stage in bytes, by what holds it.

    Attributes:
        base: the frozen base model.
        loading: what loading the base model takes beyond all of the following.
        adapters: adapters, scalar heads and other trained weights.
        training: gradients and moments of the trained weights.
        passes: peak of forward, backward, generation or writing a checkpoint, in addition to the others.
        external_reward: a reward model that is a separate model.
    """

    base: int
    loading: int
    adapters: int
    training: int
    passes: int
    external_reward: int

    @property
    def total(self) -> int:
        return self.base + self.loading + self.adapters + self.training + self.passes + self.external_reward


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """The memory settings with which a stage runs.

    Attributes:
        token_budget: tokens in one pass.
        gradient_checkpointing: which layers backward recomputes instead of keeping their activations: True or False
            for all or none, n for every n-th.
        needs: predicted memory with these settings.
        demand: what the stage demands of the models with these settings.
        fits: whether `needs` is within the available memory.
        ample: whether this is the first candidate, which is chosen if memory is ample.
    """

    token_budget: int
    gradient_checkpointing: int
    needs: MemoryNeeds
    demand: Demand
    fits: bool
    ample: bool


def choose_memory_settings(
    dry_run: DryRun,
    rehearsed: Callable[[int], Demand],
    available: float,
    *,
    token_budget: int | None,
    gradient_checkpointing: int | None,
    present: Callable[[Footprint], int] = lambda _: 0,
) -> MemorySettings:
    """Return the first candidate that fits, or else the last one, which needs the least memory.

    Candidates keep activations while passes are long enough. Further candidates recompute them, first in some layers
    and in the shortest of these passes, because a longer one would not need less than one that keeps everything.

    Args:
        dry_run: measures what passes take.
        rehearsed: returns the stage's demand at a token budget.
        available: bytes that the stage may take.
        token_budget: from the settings; None to choose it here.
        gradient_checkpointing: from the settings; None to choose it here.
        present: returns the bytes of the footprint that are already allocated.
    """
    footprint = dry_run.footprint()

    def settings(budget: int, recompute: int) -> MemorySettings:
        demand = rehearsed(budget)
        needs = _needs(dry_run, footprint, demand, budget, recompute)
        fits = needs.total - present(footprint) <= available
        return MemorySettings(budget, recompute, needs, demand, fits, ample=(budget, recompute) == first)

    first, *others = _candidates(token_budget, gradient_checkpointing)
    found = settings(*first)
    if found.fits or not others:
        return found
    least = settings(*others.pop())
    if not least.fits:
        return least  # nothing does, and every candidate takes seconds to measure
    return next((found for other in others if (found := settings(*other)).fits), least)


def _candidates(token_budget: int | None, checkpointing: int | None) -> Iterator[tuple[int, int]]:
    halved = [AUTO_BUDGET >> n for n in range(AUTO_BUDGET.bit_length()) if AUTO_BUDGET >> n >= SMALLEST_BUDGET]
    budgets = halved if token_budget is None else [token_budget]
    if checkpointing is not None:
        yield from ((budget, checkpointing) for budget in budgets)
        return
    long = [budget for budget in budgets if budget >= LEAST_KEPT or token_budget is not None]
    yield from ((budget, False) for budget in long)
    yield from ((long[-1], every) for every in SOME_LAYERS)
    yield from ((budget, True) for budget in budgets)


def _needs(dry_run: DryRun, footprint: Footprint, demand: Demand, budget: int, recompute: int) -> MemoryNeeds:
    # While a checkpoint is written, its contents (weights, two moments and snapshots) exist a second time.
    passes = [footprint.training + footprint.snapshots]
    if demand.largest:
        passes.append(dry_run.training(demand.largest, checkpointing=recompute))
    passes += [dry_run.reading(one) for one in demand.reading]
    if demand.room:
        tokens = budget * dry_run.generation_cache_factor(checkpointing=recompute)
        rows = max(1, min(demand.generated_together, tokens // demand.room))
        prompt = max(1, demand.room - demand.response_tokens)
        cache = dry_run.generating(rows, demand.room, footprint.cache_per_token)
        logits = rows * dry_run.vocabulary
        choosing = logits * LOGIT_BYTES + min(logits, max(CHOSEN_TOGETHER, dry_run.vocabulary)) * CHOOSING_BYTES
        passes.append(cache + max(dry_run.prompting(rows, prompt), choosing))
    kept = (footprint.adapters, footprint.training, max(passes), footprint.external_reward)
    return MemoryNeeds(footprint.base, max(0, footprint.loading - sum(kept)), *kept)


def available_memory(device: torch.device, limit: float | None = None, processes: int = 1) -> int:
    """Return the bytes that a process of a stage may be planned to take on this device now.

    Args:
        device: on a CPU, what the system and the container leave free counts; on a GPU, its free memory.
        limit: GiB that the settings allow for each process; None for no limit.
        processes: that share the stage. On a CPU they share its memory, while each of them has a GPU of its own.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free: float = torch.cuda.mem_get_info(device)[0] + unused
    else:
        free = free_on_cpu(processes)
    return share_of(free, limit)
