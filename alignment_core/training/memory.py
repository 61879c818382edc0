"""How much memory a stage needs, and the token budget and checkpointing with which it fits."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from alignment_core.models.dry_run import DryRun, Footprint
from alignment_core.models.generate import CHOSEN_TOGETHER
from alignment_core.models.logps import SMALLEST_BUDGET
from alignment_core.training.rehearsal import Demand

AUTO_BUDGET = 4096
"""Tokens in one pass where memory suffices; more makes nothing faster on the hardware of today's desks."""
LEAST_KEPT = 1024
"""Budget below which recomputing activations costs less than smaller passes do."""
SHARE = 0.9
"""Of the free memory, what a stage may be planned to take."""
LOGIT_BYTES, CHOOSING_BYTES = 8, 32
"""Per logit of a generated batch, with its copy in float32, and per logit of those from which tokens are chosen at one
time: float32 twice, float64 probabilities, their sum and copies (`generate.choose`)."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Predicted bytes of a stage, by what holds them.

    Attributes:
        base: the frozen base.
        loading: what loading the base takes beyond all that follows.
        adapters: adapters and scalar heads.
        training: gradients and moments of the weights that learn.
        passes: peak of what forward, backward, generation or writing a checkpoint hold beside these.
        external_reward: a reward model that is a model of its own.
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
class Choice:
    """With what a stage runs.

    Attributes:
        token_budget: tokens in one pass.
        gradient_checkpointing: whether backward recomputes each layer instead of keeping its activations.
        needs: predicted memory with these.
        demand: what the stage asks of the models with these.
        fits: whether that is within the memory that may be taken.
    """

    token_budget: int
    gradient_checkpointing: bool
    needs: Needs
    demand: Demand
    fits: bool


def choose(
    dry_run: DryRun,
    rehearsed: Callable[[int], Demand],
    available: float,
    *,
    token_budget: int | None,
    gradient_checkpointing: bool | None,
    present: Callable[[Footprint], int] = lambda _: 0,
) -> Choice:
    """The first of the candidates that fits, else the one that needs least.

    Activations are kept while passes stay long enough; then they are recomputed.

    Args:
        dry_run: tells what passes take.
        rehearsed: the stage's demand at a token budget.
        available: bytes that it may take.
        token_budget: forced by the settings; None: chosen here.
        gradient_checkpointing: ditto.
        present: bytes of the footprint that are taken already.
    """
    footprint = dry_run.footprint()
    best: Choice | None = None
    for budget, recompute in _candidates(token_budget, gradient_checkpointing):
        demand = rehearsed(budget)
        needs = _needs(dry_run, footprint, demand, budget, recompute)
        fits = needs.total - present(footprint) <= available
        found = Choice(budget, recompute, needs, demand, fits)
        if fits:
            return found
        if best is None or needs.total < best.needs.total:
            best = found
    assert best is not None
    return best


def _candidates(token_budget: int | None, checkpointing: bool | None) -> Iterator[tuple[int, bool]]:
    halved = [AUTO_BUDGET >> n for n in range(AUTO_BUDGET.bit_length()) if AUTO_BUDGET >> n >= SMALLEST_BUDGET]
    budgets = halved if token_budget is None else [token_budget]
    if checkpointing is not True:
        yield from (
            (b, False) for b in budgets if b >= LEAST_KEPT or token_budget is not None or checkpointing is False
        )
    if checkpointing is not False:
        yield from ((b, True) for b in budgets)


def _needs(dry_run: DryRun, footprint: Footprint, demand: Demand, budget: int, recompute: bool) -> Needs:
    # A checkpoint's bytes, weights and two moments, exist once more while it is written.
    passes = [footprint.training]
    if demand.largest:
        passes.append(dry_run.training(demand.largest, checkpointing=recompute))
    passes += [dry_run.reading(one) for one in demand.reading]
    if demand.room:
        tokens = budget * dry_run.cached_for_learned(checkpointing=recompute)
        rows = max(1, min(demand.generated_together, tokens // demand.room))
        prompt = max(1, demand.room - demand.response_tokens)
        cache = dry_run.generating(rows, demand.room, footprint.cache_per_token)
        logits = rows * dry_run.vocabulary
        choosing = logits * LOGIT_BYTES + min(logits, max(CHOSEN_TOGETHER, dry_run.vocabulary)) * CHOOSING_BYTES
        passes.append(cache + max(dry_run.prompting(rows, prompt), choosing))
    kept = (footprint.adapters, footprint.training, max(passes), footprint.external_reward)
    return Needs(footprint.base, max(0, footprint.loading - sum(kept)), *kept)


def available_memory(device: torch.device, limit: float | None = None) -> int:
    """Bytes that a stage may be planned to take on this device now.

    Args:
        device: CPU: what the system, the container and the process's own limits leave free; GPU: what the card does.
        limit: GiB that the settings allow; None: all.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free: float = torch.cuda.mem_get_info(device)[0] + unused
    else:
        free = min(_free_in_system(), _free_in_container())
    return round(SHARE * free if limit is None else min(SHARE * free, limit * 2**30))


def resident_memory() -> int:
    """Bytes that this process holds now."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _kilobytes(status.read_text(), "VmRSS:")


def _free_in_system() -> int:
    try:
        return _kilobytes(Path("/proc/meminfo").read_text(), "MemAvailable:")
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _kilobytes(text: str, name: str) -> int:
    line = next(line for line in text.splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _free_in_container() -> float:
    """What the control group leaves, its file cache counted as free; infinite without a limit."""
    for limit, usage, stat in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        folder = Path("/sys/fs/cgroup")
        try:
            most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
            stats = dict(line.split() for line in (folder / stat).read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most != "max":
            return max(0, int(most) - used + int(stats.get("inactive_file", 0)))
    return float("inf")
