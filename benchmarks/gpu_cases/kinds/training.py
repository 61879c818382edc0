"""Memory and speed of each kind of training, with the settings that the planner chooses for a card of a given size."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignment_core.config import LoadIn
from alignment_core.plugin_api import TokenSequence
from alignment_core.stages.shared.memory_fit import choose_for_run
from alignment_core.training.loop import Objective, train
from alignment_core.training.memory import MemorySettings, available_memory
from alignment_core.training.run import Run
from gpu_cases.inputs.base_model import make_base
from gpu_cases.inputs.shapes import SHAPES
from gpu_cases.inputs.token_data import Lengths, make_rows
from gpu_cases.kinds.roofline import Size, limits_of, shortest_seconds
from gpu_cases.kinds.runs import COUNTED, LEARNING_RATE, LORA, Clock, Watched, make_objective, now, open_run
from gpu_cases.place import Place
from gpu_cases.result import Result

LOAD_IN: LoadIn = "nf4"
NEVER_SAVED = 1e9


@dataclass(frozen=True)
class Load:
    """How much a case trains on.

    Attributes:
        lengths: longest prompt and completion in tokens; PPO samples responses of this length.
        rows: rows per optimizer step, except in PPO.
        steps: measured optimizer steps after one that warms up, except in PPO.
        rollout: responses per rollout of PPO. One rollout warms up and one is measured.
    """

    lengths: Lengths
    rows: int
    steps: int
    rollout: int
    ppo: Lengths


FULL = Load(Lengths(512, 1536), rows=8, steps=3, rollout=64, ppo=Lengths(200, 200))
TINY = Load(Lengths(16, 48), rows=4, steps=2, rollout=8, ppo=Lengths(8, 8))
PPO_EPOCHS, PPO_MINIBATCHES = 4, 4


def load_of(size: str) -> Load:
    """Return what a model of this size trains on."""
    return TINY if size.startswith("tiny") else FULL


def lengths_of(task: str, load: Load) -> Lengths:
    """Return the lengths of a task's rows."""
    return load.ppo if task == "ppo" else load.lengths


def objective_for(task: str, load: Load) -> Objective:
    """Return the objective of a case, for all of its steps."""
    if task != "ppo":
        return make_objective(task, batch_size=load.rows, learning_rate=LEARNING_RATE)
    return make_objective(
        "ppo",
        learning_rate=LEARNING_RATE,
        batch_size=load.rollout // PPO_MINIBATCHES,
        rollout_size=load.rollout,
        rollouts=2,
        epochs=PPO_EPOCHS,
        max_new_tokens=load.ppo.completion,
        step_kl=None,
        kl_ceiling=1e9,
        length_drift=None,
    )


def open_case(task: str, size: str, place: Place, clock: Clock) -> tuple[Run, Size]:
    """Return the run of a case, and its model in numbers."""
    load = load_of(size)
    model = make_base(SHAPES[size], size, LOAD_IN, place.device)
    numbers = Size.of(model, LOAD_IN)
    count = load.rollout if task == "ppo" else load.rows * (load.steps + 1)
    rows = make_rows(count, lengths_of(task, load), SHAPES[size]["vocab_size"])
    return open_run(task, model, rows, clock, budget=4096), numbers


def train_case(place: Place, task: str, size: str, cap: int | None) -> Result:
    """Train for a few steps as the stage would on a card with `cap` GiB, and compare its memory with the prediction."""
    if place.is_card and cap is not None:
        place.cap(cap)
    began = now(place.device)
    clock, load = Clock(place.device), load_of(size)
    run, numbers = open_case(task, size, place, clock)
    objective = objective_for(task, load)
    ready = now(place.device)
    cached = cache_reference(run, task)
    referred = now(place.device)
    reference = referred - ready if cached else 0.0
    choice = plan(objective, run)
    planned = now(place.device)
    place.reset_peaks()
    watched = Watched(objective, task)
    parts: dict[str, float] = {}
    with _sampling_timed(run, parts), tempfile.TemporaryDirectory() as folder:
        train(watched, run, Path(folder), NEVER_SAVED)
    peaks = place.peaks()
    first = len(watched.tokens) // 2 if task == "ppo" else 1
    seconds, tokens = clock.ended[-1] - clock.ended[first - 1], sum(watched.tokens[first:])
    limits = limits_of(place)
    share = tokens / sum(watched.tokens)
    shortest = share * shortest_seconds(
        numbers, limits, choice.demand, learned_sequences(run, task, load), budget=run.budget.tokens,
        recompute=run.roles.checkpointing,
    )  # fmt: skip
    details: dict[str, Any] = {
        "roofline_share": round(shortest / seconds, 4),
        "limits": asdict(limits),
        "context": peaks.context,
        "fits": choice.fits,
        "needs": asdict(choice.needs),
        "micro_batches": watched.micro_batches,
        "seconds_opening": round(ready - began, 2),
        "seconds_reference": round(share * reference, 3),
        "seconds_planning": round(planned - referred, 2),
        "loss": run.history[-1].get("loss"),
        "warnings": run.warnings,
    }
    if task == "ppo":
        details["split"] = _split(watched, parts, first, seconds)
    settings = {
        "load_in": LOAD_IN,
        "token_budget": choice.token_budget,
        "gradient_checkpointing": choice.gradient_checkpointing,
        "token_budget_at_end": run.budget.tokens,
        "longest": lengths_of(task, load).longest,
        "batch_size": objective_for(task, load).batch_size,  # type: ignore[attr-defined]
        "lora_rank": LORA.rank,
    }
    return Result(True, settings, seconds, tokens, peaks.allocated, peaks.reserved, choice.needs.total, details)


def plan(objective: Objective, run: Run) -> MemorySettings:
    """Choose the memory settings of a run as its stage does, set them, and return them with the prediction."""
    config = {"load_in": LOAD_IN, "lora": LORA.model_dump()}
    choice = choose_for_run(objective, run, config, available_memory(run.device), None, None)
    run.budget.tokens = choice.token_budget
    run.roles.checkpoint_layers(choice.gradient_checkpointing)
    return choice


def cache_reference(run: Run, task: str) -> bool:
    """Compute the log-probabilities under the reference for DPO and KTO, as the stage `reference` does.

    Returns whether the task has such a stage.
    """
    if task not in ("dpo", "kto"):
        return False
    rows = run.preferences if task == "dpo" else run.feedback
    sequences = {s.digest(): s for row in rows for s in row.sequences.values()}
    logps = run.reference.live.logps(list(sequences.values())).tolist()
    run.reference.cached = run.cached_reference = dict(zip(sequences, logps, strict=True))
    return True


def learned_sequences(run: Run, task: str, load: Load) -> list[TokenSequence]:
    """Return the sequences that the run learns from; those of PPO have the lengths that will be sampled."""
    if task == "ppo":
        prompts = [row.sequences["prompt"].ids for row in run.prompts]
        return [TokenSequence((*ids, *(0,) * load.ppo.completion), len(ids)) for ids in prompts]
    rows = {"sft": run.demonstrations, "kto": run.feedback}.get(task, run.preferences)
    return [row.sequences[name] for row in rows for name in COUNTED[task]]


@contextmanager
def _sampling_timed(run: Run, parts: dict[str, float]) -> Iterator[None]:
    """Add up the seconds of sampling; the last rollout's are kept."""
    generate = run.generate

    def timed(*arguments: Any, **options: Any) -> Any:
        began = now(run.device)
        found = generate(*arguments, **options)
        parts["sampling"] = now(run.device) - began
        return found

    run.generate = timed  # type: ignore[method-assign]
    yield


def _split(watched: Watched, parts: dict[str, float], first: int, seconds: float) -> dict[str, float]:
    """Return the seconds of learning, scoring and sampling of the measured rollout."""
    preparing = sum(watched.preparing[first:])
    sampling = parts["sampling"]
    split = {"learning": seconds - preparing, "scoring": preparing - sampling, "sampling": sampling}
    return {name: round(value, 3) for name, value in split.items()}
