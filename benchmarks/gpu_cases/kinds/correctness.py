"""Whether the card computes what the CPU computes: losses and gradients, generation, out of memory, resuming."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment_core.config import LoadIn
from alignment_core.models.passes.batching import row_sequences
from alignment_core.plugin_api import StepBatch, TokenSequence
from alignment_core.progress import Silent, Stopped
from alignment_core.training.contract import Objective
from alignment_core.training.loop import accumulate, train
from alignment_core.training.run import Run
from gpu_cases.inputs.base_model import make_base
from gpu_cases.inputs.shapes import SHAPES
from gpu_cases.inputs.token_data import Lengths, make_rows
from gpu_cases.kinds.runs import Clock, make_objective, open_run
from gpu_cases.place import Place
from gpu_cases.result import Result

ROWS, LENGTHS, ENOUGH = 8, Lengths(24, 40), 1 << 20
STOPS = tuple(range(3, 40))
PRECISIONS: tuple[LoadIn, ...] = ("fp32", "bf16", "nf4")
LOSS = {"fp32": 1e-4, "bf16": 0.02, "nf4": 0.02}
"""Largest accepted difference of a loss: relative to it, or absolute where it is below 1. On a card, NF4 computes in
bf16; on a CPU, in float32."""
GRADIENT = {"fp32": 1e-3, "bf16": 0.15, "nf4": 0.15}
"""Largest accepted difference of a gradient, as a share of its Euclidean norm. On a CPU, rounding to bf16
changes these gradients by 3 to 7 %."""
SPLIT = {"fp32": 1e-3, "bf16": 0.15, "nf4": 0.15}
"""The same for two micro-batches beside one, on the card alone."""
TEMPERATURES = {"greedy": 0.0, "drawn": 1.0}
NEVER_SAVED = 1e9
FREE_FOR_PASSES, TOKENS_ON_CPU = 2**30, 600
"""What an out-of-memory error is forced with: bytes that passes may take on a card, and tokens that they may have on a
CPU."""


def settings_of(task: str, steps: int) -> dict[str, Any]:
    """Return settings of an objective for a few steps of `ROWS` rows."""
    if task != "ppo":
        return {"batch_size": ROWS, "epochs": steps, "learning_rate": 1e-3}
    own = {"rollout_size": ROWS, "rollouts": max(1, steps // 2), "epochs": 2, "max_new_tokens": 16}
    return {"batch_size": ROWS, "learning_rate": 1e-3, "step_kl": None, "kl_ceiling": 1e9, **own}


def open_tiny(task: str, load_in: LoadIn, device: torch.device, progress: Any, budget: int = ENOUGH) -> Run:
    """Return a run with a tiny model whose weights and adapters are the same on every device."""
    model = make_base(SHAPES["tiny"], "tiny", load_in, device, drawn_on="cpu")
    rows = make_rows(ROWS, LENGTHS, SHAPES["tiny"]["vocab_size"])
    return open_run(task, model, rows, progress, budget=budget, stop_ids=STOPS)


def gradients(place: Place, task: str) -> Result:
    """Compare the loss and the gradients of one step with the CPU's, and two micro-batches with one."""
    found: dict[str, Any] = {}
    ok = True
    for load_in in PRECISIONS:
        objective = make_objective(task, **settings_of(task, 1))
        cpu = open_tiny(task, load_in, torch.device("cpu"), Silent())
        card = open_tiny(task, load_in, place.device, Silent())
        expected, wanted = _step(objective, cpu, _batch(objective, cpu))
        if task == "ppo":  # learn from the same rollout: in bf16, another token may be drawn
            card.state = copy.deepcopy(cpu.state)
            assert cpu.rewarded_by is not None
            assert card.rewarded_by is not None
            card.rewarded_by.units = dict(cpu.rewarded_by.units)
        batch = _batch(objective, card)
        metrics, got = _step(objective, card, batch)
        card.budget.tokens = sum(len(s.ids) for row in batch.rows for s in row_sequences(row)) // 2
        parts = len(card.roles.groups(batch.rows, card.budget.tokens, row_sequences))
        halves, in_parts = _step(objective, card, batch)
        errors = {
            "loss": abs(metrics["loss"] - expected["loss"]) / max(1.0, abs(expected["loss"])),
            "gradient": _error(got, wanted),
            "split": max(_error(in_parts, got), abs(halves["loss"] - metrics["loss"])),
        }
        within = {"loss": LOSS, "gradient": GRADIENT, "split": SPLIT}
        ok = ok and parts >= 2 and all(value <= within[name][load_in] for name, value in errors.items())
        found[load_in] = errors | {"parts": parts, "loss_on_cpu": expected["loss"], "norm_on_cpu": float(wanted.norm())}
    return Result(ok, settings={"model": "tiny", "rows": ROWS}, details=found)


def _batch(objective: Objective, run: Run) -> StepBatch:
    with torch.no_grad():
        return next(objective.batches(run))


def _step(objective: Objective, run: Run, batch: StepBatch) -> tuple[dict[str, float], Tensor]:
    """Return the metrics and all gradients in one vector on the CPU."""
    weights = run.roles.parameters().values()
    metrics = accumulate(objective, run, batch, weights)
    return metrics, torch.cat([weight.grad.flatten().cpu() for weight in weights if weight.grad is not None])


def _error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def generation(place: Place) -> Result:
    """Compare sampled tokens with the CPU's, in float32: greedy, and drawn with the same noise."""
    both = []
    for device in (torch.device("cpu"), place.device):
        run = open_tiny("sft", "fp32", device, Silent())
        both.append({name: _sampled(run, temperature) for name, temperature in TEMPERATURES.items()})
    equal = {name: _equal_share(both[0][name], both[1][name]) for name in TEMPERATURES}
    # Where two tokens are almost equally likely, rounding decides, so a single row may differ.
    return Result(min(equal.values()) >= 1 - 1 / ROWS, settings={"rows": ROWS}, details={"equal_rows": equal})


def _sampled(run: Run, temperature: float) -> list[TokenSequence]:
    rollouts = run.generate(run.prompts, max_new_tokens=32, temperature=temperature)
    return [rollout.sequence for rollout in rollouts]


def _equal_share(one: list[TokenSequence], other: list[TokenSequence]) -> float:
    return sum(a.ids == b.ids for a, b in zip(one, other, strict=True)) / len(one)


def resuming(place: Place, task: str) -> Result:
    """Compare a run that was stopped and resumed with an uninterrupted one.

    Sums on a card may differ from run to run. A second uninterrupted run tells by how much.
    """
    steps = 4
    whole, again = (_trained(place, task, steps, []) for _ in range(2))
    resumed = _trained(place, task, steps, [1, 3])  # PPO: within a rollout
    noise, error = (_error(_vector(other), _vector(whole)) for other in (again, resumed))
    ok = error <= max(10 * noise, 1e-6 if place.is_card else 0.0) and resumed["steps_done"] == whole["steps_done"]
    details = {"difference": error, "between_equal_runs": noise, "steps_done": resumed["steps_done"]}
    return Result(ok, settings={"steps": steps}, details=details)


def _trained(place: Place, task: str, steps: int, stops: list[int]) -> dict[str, Any]:
    """Train as if in as many processes as there are stops, and one more. Each one opens the run anew.

    A process that does not resume does steps again, so the steps of all of them are counted.
    """
    done = 0
    with tempfile.TemporaryDirectory() as folder:
        for stop in [*stops, None]:
            clock = Clock(place.device, stop)
            run = open_tiny(task, "fp32", place.device, clock)
            with suppress(Stopped):
                train(make_objective(task, **settings_of(task, steps)), run, Path(folder), NEVER_SAVED)
            done += len(clock.ended)
    return {"weights": run.roles.parameters(), "steps_done": done}


def _vector(trained: Mapping[str, Any]) -> Tensor:
    return torch.cat([weight.detach().flatten().cpu() for weight in trained["weights"].values()])


def out_of_memory(place: Place, size: str) -> Result:
    """Force an out-of-memory error in the first step, and compare with a run that starts with the halved budget."""
    lengths = Lengths(64, 448) if place.is_card else LENGTHS
    rows = make_rows(32, lengths, SHAPES[size]["vocab_size"])
    objective = make_objective("sft", batch_size=32, epochs=2)
    first = 1 << 14

    def trained(budget: int, force: bool) -> Run:
        model = make_base(SHAPES[size], size, "fp32", place.device)
        run = open_run("sft", model, rows, Clock(place.device), budget=budget)
        if force:
            _limit(place, run)
        with tempfile.TemporaryDirectory() as folder:
            train(objective, run, Path(folder), NEVER_SAVED)
        return run

    forced = trained(first, True)
    if place.is_card:
        torch.cuda.set_per_process_memory_fraction(1.0)
    small = trained(forced.budget.tokens, False)
    losses = [[entry["loss"] for entry in run.history] for run in (forced, small)]
    difference = max(abs(one - other) for one, other in zip(*losses, strict=True))
    ok = forced.budget.tokens < first and bool(forced.warnings) and difference <= 1e-3
    details = {"budget": forced.budget.tokens, "halvings": len(forced.warnings), "difference": difference}
    return Result(ok, settings={"model": size, "first_budget": first}, details=details)


def _limit(place: Place, run: Run) -> None:
    """Leave 1 GiB of the card, which the first passes exceed. On a CPU, refuse long passes as a full card would."""
    if place.is_card:
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + FREE_FOR_PASSES) / total)
        return
    body: Any = run.roles.body

    def refusing(**inputs: Any) -> Any:
        if inputs["input_ids"].numel() > TOKENS_ON_CPU:
            raise torch.OutOfMemoryError("CUDA out of memory (forced)")
        return body(**inputs)

    run.roles.body = refusing
