"""Which attention kernels run, and how many launches and host syncs an optimizer step and a sampled token take."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from alignment_core.progress import Stopped
from alignment_core.training.loop import train
from gpu_cases.kinds.runs import Clock, now
from gpu_cases.kinds.training import NEVER_SAVED, cache_reference, load_of, objective_for, open_case, plan
from gpu_cases.place import Place
from gpu_cases.result import Result

ATTENTION = re.compile(r"attention|_attn|flash|fmha|varlen", re.IGNORECASE)
NOT_A_KERNEL = re.compile(r"^autograd::|Backward\d+$|^aten::scaled_dot_product_attention$")
LAUNCH = re.compile(r"^(cuda|cu)(LaunchKernel|GraphLaunch)")
SYNC = re.compile(r"^cuda(Stream|Device|Event)Synchronize$")
READ_BY_HOST = re.compile(r"Memcpy DtoH" if torch.cuda.is_available() else r"_local_scalar_dense")
LONGEST, SHOWN, SAMPLED_ROWS, SAMPLED_TOKENS = 100, 8, 16, 16


@dataclass
class ProfiledStep(Clock):
    """Progress that profiles the second step."""

    profiler: Any = field(default_factory=lambda: _profiler())

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        if done == 1:
            now(self.device)
            self.profiler.start()
        elif done == 2:
            self.profiler.stop()
            self.stopping = True


def step_case(place: Place, task: str, size: str) -> Result:
    """Profile the second optimizer step of a task."""
    clock = ProfiledStep(place.device)
    run, _ = open_case(task, size, place, clock)
    objective = objective_for(task, load_of(size))
    cache_reference(run, task)
    plan(objective, run)
    with tempfile.TemporaryDirectory() as folder, suppress(Stopped):
        train(objective, run, Path(folder), NEVER_SAVED)
    settings = {"token_budget": run.budget.tokens, "gradient_checkpointing": run.roles.checkpointing}
    return Result(settings=settings, details=_counts(clock.profiler, 1))


def sampling_case(place: Place, size: str) -> Result:
    """Profile the sampling of a few tokens for a batch of prompts."""
    clock = Clock(place.device)
    run, _ = open_case("ppo", size, place, clock)
    prompts = run.prompts[:SAMPLED_ROWS]

    def sample(tokens: int) -> None:
        run.generate(prompts, max_new_tokens=tokens)

    sample(2)
    began = now(place.device)
    sample(SAMPLED_TOKENS)
    seconds = now(place.device) - began
    settings = {"rows": len(prompts), "tokens": SAMPLED_TOKENS}
    profiled = _profiled(lambda: sample(SAMPLED_TOKENS))
    details = _counts(profiled, SAMPLED_TOKENS) | {"seconds_per_token": seconds / SAMPLED_TOKENS}
    return Result(settings=settings, details=details)


def _profiler() -> Any:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    return profile(activities=activities)


def _profiled(work: Callable[[], None]) -> Any:
    with _profiler() as profiler:
        work()
    return profiler


def _counts(profiler: Any, per: int) -> dict[str, Any]:
    """Return launches, syncs and reads by the host per unit, the calls of attention, and what took longest, in ms."""
    events = profiler.key_averages()

    def count(pattern: re.Pattern[str]) -> float:
        return float(sum(event.count for event in events if pattern.search(event.key)) / per)

    slowest = sorted(events, key=lambda event: -_time(event))[:SHOWN]
    return {
        "launches": count(LAUNCH),
        "syncs": count(SYNC),
        "reads_by_host": count(READ_BY_HOST),
        "attention": {
            event.key[:LONGEST]: event.count / per
            for event in events
            if ATTENTION.search(event.key) and not NOT_A_KERNEL.search(event.key)
        },
        "slowest_ms": {event.key[:LONGEST]: round(_time(event) / 1000, 3) for event in slowest},
    }


def _time(event: Any) -> float:
    """Return the microseconds of an operation itself: on the card if there is one, else on the CPU."""
    time: float = event.self_device_time_total if torch.cuda.is_available() else event.self_cpu_time_total
    return time
