"""Memory and speed of each kind of training, with the settings that the planner chooses for a card of a given size."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from alignment_core.config import LoadIn
from alignment_core.errors import AlignmentError
from alignment_core.plugin_api import TokenSequence
from alignment_core.stages.shared.memory_fit import choose_for_run
from alignment_core.training.contract import Objective
from alignment_core.training.loop import train
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


@dataclass
class Session:
    """A case between its opening and its result.

    Attributes:
        task, load: what is trained, and how much of it.
        run, numbers: the run, and its model in numbers.
        watched, clock: the objective and the progress, which note tokens and times.
        choice: the settings of the planner, with its prediction.
        reference: seconds in which the reference was cached.
        sampling: seconds of each call of `run.generate`.
    """

    task: str
    load: Load
    run: Run
    numbers: Size
    watched: Watched
    clock: Clock
    choice: MemorySettings
    reference: float
    sampling: list[float]


def train_case(place: Place, task: str, size: str, cap: int | None) -> Result:
    """Train for a few steps as the stage would on a card with `cap` GiB, and compare its memory with the prediction."""
    if place.is_card and cap is not None:
        place.cap(cap)
    times = [now(place.device)]
    clock, load = Clock(place.device), load_of(size)
    run, numbers = open_case(task, size, place, clock)
    watched = Watched(objective_for(task, load), task)
    times.append(now(place.device))
    cached = cache_reference(run, task)
    times.append(now(place.device))
    choice = plan(watched.objective, run)
    times.append(now(place.device))
    opening, reference, planning = (after - before for before, after in pairwise(times))
    session = Session(task, load, run, numbers, watched, clock, choice, reference if cached else 0.0, [])
    result = Result(predicted=choice.needs.total, settings=_settings(session))
    place.reset_peaks()
    _time_sampling(run, session.sampling)
    try:
        with tempfile.TemporaryDirectory() as folder:
            train(watched, run, Path(folder), NEVER_SAVED)
    except AlignmentError as error:
        result.ok, result.error = False, f"{type(error).__name__}: {error}"
    peaks = place.peaks()
    result.peak_allocated, result.peak_reserved = peaks.allocated, peaks.reserved
    result.settings["token_budget_at_end"] = run.budget.tokens
    result.details = {
        "context": peaks.context,
        "fits": choice.fits,
        "needs": asdict(choice.needs),
        "micro_batches": watched.micro_batches,
        "seconds_opening": round(opening, 2),
        "seconds_planning": round(planning, 2),
        "warnings": run.warnings,
    }
    if result.ok:
        _add_speed(result, session, place)
    return result


def _recomputed_share(run: Run) -> float:
    """Return the share of layers that backward recomputes. `checkpointing` is 0 for none of them, n for every n-th."""
    every = int(run.roles.checkpointing)
    return 1 / every if every else 0.0


def _settings(session: Session) -> dict[str, Any]:
    return {
        "load_in": LOAD_IN,
        "token_budget": session.choice.token_budget,
        "gradient_checkpointing": session.choice.gradient_checkpointing,
        "longest": lengths_of(session.task, session.load).longest,
        "batch_size": session.watched.objective.batch_size,
        "lora_rank": LORA.rank,
    }


def _add_speed(result: Result, session: Session, place: Place) -> None:
    """Add the speed after the warmup, its share of the roofline and, for PPO, where the time went."""
    run, ended, tokens = session.run, session.clock.ended, session.watched.tokens
    first = len(tokens) // 2 if session.task == "ppo" else 1
    result.seconds, result.tokens = ended[-1] - ended[first - 1], sum(tokens[first:])
    limits, share = limits_of(place), result.tokens / sum(tokens)
    shortest = shortest_seconds(
        session.numbers, limits, session.choice.demand, learned_sequences(run, session.task, session.load),
        budget=run.budget.tokens, recomputed=_recomputed_share(run),
    )  # fmt: skip
    result.details |= {
        "roofline_share": round(share * shortest / result.seconds, 4),
        "limits": asdict(limits),
        "seconds_reference": round(share * session.reference, 3),
        "loss": run.history[-1].get("loss"),
    }
    if session.task == "ppo":
        preparing, sampling = sum(session.watched.preparing[first:]), session.sampling[-1]
        split = (result.seconds - preparing, preparing - sampling, sampling)
        result.details["split"] = dict(zip(("learning", "scoring", "sampling"), split, strict=True))


def plan(objective: Objective, run: Run) -> MemorySettings:
    """Choose the memory settings of a run as its stage does, set them, and return them with the prediction."""
    config = {"load_in": LOAD_IN, "lora": LORA.model_dump()}
    choice = choose_for_run(objective, run, config, available_memory(run.device), None, None, None)
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


def _time_sampling(run: Run, seconds: list[float]) -> None:
    """Add the seconds of every call of `run.generate` to a list."""
    generate = run.generate

    def timed(*arguments: Any, **options: Any) -> Any:
        began = now(run.device)
        found = generate(*arguments, **options)
        seconds.append(now(run.device) - began)
        return found

    run.generate = timed  # type: ignore[method-assign]
