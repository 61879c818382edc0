"""The training loop of every stage and optimizer. It has the only `backward` and the only `step`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from alignment_core.errors import PluginError, TrainingError, ran_out_of_memory
from alignment_core.models.passes.batching import row_sequences
from alignment_core.models.roles.shares import shares_of
from alignment_core.plugin_api import Row, StepBatch
from alignment_core.plugin_calls import calling, method_of
from alignment_core.progress import Stopped
from alignment_core.ranks import Ranks
from alignment_core.seeds import seed_of
from alignment_core.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from alignment_core.training.contract import GRAD_NORM, Objective, batches_of, loss_of, place_of, steps_of
from alignment_core.training.micro_rows import MicroRows
from alignment_core.training.run import Run
from alignment_core.training.step.adamw import make_adamw
from alignment_core.training.step.loss_scale import LossScale
from alignment_core.training.step.shared import check_same_batch, sum_over_ranks

DIVERGENCE_STEPS = 5


def train(objective: Objective, run: Run, checkpoints: Path, checkpoint_seconds: float) -> None:
    """Train until `batches` ends. `run.history` then holds the metrics of every step.

    Resumes from the newest checkpoint in `checkpoints`. Writes one every `checkpoint_seconds`, on a stop and at the
    end. If a pass runs out of memory, the token budget is halved, and the step or the work on its batch is repeated.

    Raises:
        TrainingError: the loss or its gradient is not finite or explodes, or there is not enough memory even with the
            smallest budget, or for work that the budget does not affect. No checkpoint is written then. A new run
            resumes from the newest checkpoint, which never holds part of a step.
        PluginError: the loss breaks its contract.
        Stopped: the stage was asked to stop; a checkpoint is written.
    """
    _Loop(objective, run, checkpoints, checkpoint_seconds).train()


def learning_rate_factor(step: int, total: int, *, schedule: str, warmup_fraction: float) -> float:
    """Return the fraction of the peak learning rate in step `step` (from 0) of `total`.

    A linear warmup, then cosine decay to 10%, linear decay to 0, or a constant rate.
    """
    warmup = round(warmup_fraction * total)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if schedule == "cosine":
        return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done)))
    return max(0.0, 1 - done) if schedule == "linear" else 1.0


def has_diverged(losses: Sequence[float], growth: float | None) -> bool:
    """Return whether the newest losses are far above the first: |their mean| > growth · (1 + |the first losses' mean|).

    A loss that is merely no better than at the start is not a fault. One that explodes exceeds any multiple of it.
    """
    if growth is None or len(losses) < 2 * DIVERGENCE_STEPS:
        return False
    first, newest = (sum(part) / DIVERGENCE_STEPS for part in (losses[:DIVERGENCE_STEPS], losses[-DIVERGENCE_STEPS:]))
    return abs(newest) > growth * (1 + abs(first))


class _Loop:
    def __init__(self, objective: Objective, run: Run, checkpoints: Path, checkpoint_seconds: float) -> None:
        self.objective, self.run = objective, run
        self.checkpoints, self.checkpoint_seconds = checkpoints, checkpoint_seconds
        self.weights = run.roles.parameters()
        self.optimizer = make_adamw(
            self.weights.values(), objective.adamw, objective.learning_rate, objective.weight_decay
        )
        self.scale = LossScale(run.roles.model.dtype)
        self.losses: list[float] = []
        self.saved_at = time.monotonic()

    def train(self) -> None:
        self._resume()
        total = self.run.total = steps_of(self.objective, self.run)
        batches = batches_of(self.objective, self.run)
        try:
            while (batch := self._next(batches)) is not None:
                metrics = self._step(batch, total) | self.run.take_side_metrics()
                self.run.step += 1
                self.run.metrics = metrics
                self.run.history.append({"step": self.run.step, **metrics})
                self.run.progress.step(self.run.step, total, metrics)
                if time.monotonic() - self.saved_at > self.checkpoint_seconds:
                    self._save()
        except Stopped:
            self._save()
            raise
        if left := self.run.take_side_metrics():
            self.run.report(left)
        # The stage may be killed in its later work (held-out metrics, saving) without losing the training.
        self._save()

    def _next(self, batches: Iterator[StepBatch]) -> StepBatch | None:
        # Without gradients: everything in a batch is constant within its step.
        lower = "Lower `model.max_length`, `batch_size` or, if the optimizer samples, `rollout_size`"
        with torch.no_grad(), self._in_memory("building the batch of a step", lower):
            batch = next(batches, None)
        check_same_batch(self.run.budget.ranks, batch, self.run.step)
        return batch

    def _resume(self) -> None:
        ranks = self.run.budget.ranks
        saved = load_checkpoint(self.checkpoints, self.weights, self.optimizer, self.run.progress.warn, ranks)
        if saved is None:
            return
        self.run.step, self.run.state = saved.step, saved.state
        self.run.history, self.run.warnings = saved.history, saved.warnings
        self.run.metrics, self.run.kept = saved.metrics, saved.kept
        self.run.snapshots.restore(saved.snapshots, saved.moved, saved.step)
        if self.run.rewarded_by is not None:
            self.run.rewarded_by.units = saved.reward_units
        self.scale.restore(saved.loss_scale)
        self.losses = [entry["loss"] for entry in saved.history if "loss" in entry]
        self.run.budget.tokens = min(self.run.budget.tokens, saved.budget)
        self.run.progress.log(f"resumed after step {saved.step}")

    def _save(self) -> None:
        run = self.run
        if run.budget.ranks.index > 0:  # rank 0 has the same state
            return
        saved = TrainingState(
            run.step,
            run.budget.tokens,
            run.state,
            run.metrics,
            run.history,
            run.warnings,
            self.scale.to_json(),
            {} if run.rewarded_by is None else run.rewarded_by.units,
            run.kept,
            run.snapshots.tensors(),
            run.snapshots.moved,
        )
        save_checkpoint(self.checkpoints, saved, self.weights, self.optimizer)
        self.saved_at = time.monotonic()

    def _step(self, batch: StepBatch, total: int) -> dict[str, float]:
        objective = self.objective
        rate = objective.learning_rate * learning_rate_factor(
            self.run.step, total, schedule=objective.schedule, warmup_fraction=objective.warmup_fraction
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        metrics = self._gradients(batch)
        rank = "lower `model.lora.rank` or choose a smaller model"
        less = f"Set `adamw: paged_8bit`, {rank}" if objective.adamw == "32bit" else rank.capitalize()
        with self._in_memory("taking the optimizer step", less):
            norms = self._clip(objective.max_grad_norm)
            self._guard(batch, metrics["loss"], norms)
            self.optimizer.step()
        return metrics | norms | {"learning_rate": rate}

    def _gradients(self, batch: StepBatch) -> dict[str, float]:
        """Compute the gradients of a step and return its metrics. Repeat it if float16 cannot hold the scaled loss."""
        weights = self.weights.values()
        while True:
            factor = self.scale.factor
            found = self.run.budget.fit(partial(accumulate, self.objective, self.run, batch, weights, factor))
            metrics = sum_over_ranks(self.run.budget.ranks, weights, found)
            if self.scale.remove(weights):
                return metrics
            self.run.progress.log(
                f"step {self.run.step + 1}: a gradient times {factor:g} is too large for float16. The step is repeated"
            )

    @contextmanager
    def _in_memory(self, doing: str, do: str) -> Iterator[None]:
        """Replace an out-of-memory error, where no token budget helps, by one that names a remedy.

        Raises:
            TrainingError: the context runs out of memory.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            trained = sum(weight.numel() for weight in self.weights.values())
            raise TrainingError(
                f"out of memory while {doing}",
                where=f"step {self.run.step + 1}",
                got=f"{trained:,} trained weights and a token budget of {self.run.budget.tokens}",
                do=do,
            ) from error

    def _guard(self, batch: StepBatch, loss: float, norms: Mapping[str, float]) -> None:
        """Check the loss and the gradient norms before the optimizer step.

        Raises:
            TrainingError: the loss or a gradient is not finite, or the loss has exploded.
        """
        rows = ", ".join(row.id for row in batch.rows)
        where = f"step {self.run.step + 1}"
        if not all(map(math.isfinite, (loss, *norms.values()))):
            raise TrainingError(
                "the loss or its gradient is no longer finite",
                where=where,
                got=f"loss {loss}, gradient norm {max(norms.values())} on rows {rows}",
                do="Inspect these rows, or lower the learning rate",
            )
        self.losses.append(loss)
        if has_diverged(self.losses, self.objective.max_loss_growth):
            first, newest = (
                ", ".join(f"{value:.3g}" for value in part)
                for part in (self.losses[:DIVERGENCE_STEPS], self.losses[-DIVERGENCE_STEPS:])
            )
            raise TrainingError(
                "the loss diverges",
                where=where,
                got=f"{first} in the first steps and {newest} in the last steps, the newest on rows {rows}",
                do="Lower the learning rate, or set `max_loss_growth: null` if the loss may grow this much",
            )

    def _clip(self, largest: float) -> dict[str, float]:
        """Clip the gradients of each role separately: a poor value model must not slow the policy down."""
        norms = {}
        for role, weights in self.run.roles.parameters_by_role().items():
            name = GRAD_NORM if role == self.run.roles.trained[0] else f"{GRAD_NORM}_{role}"
            norms[name] = float(torch.nn.utils.clip_grad_norm_(weights, largest))
        return norms


def accumulate(
    objective: Objective, run: Run, batch: StepBatch, weights: Iterable[torch.nn.Parameter], loss_scale: float = 1.0
) -> dict[str, float]:
    """Compute the gradients of a complete step in `weights` and return its metrics. Each call starts from zero.

    The gradients are those of `loss_scale` times the loss. If ranks share the stage, they are those of this rank's part
    of the step, and `sum_over_ranks` then gives those of the step.

    Raises:
        PluginError: the loss breaks its contract.
        Stopped: the stage was asked to stop.
    """
    for weight in weights:
        weight.grad = None
    sums: dict[str, Tensor | float] = {}
    shared = run.budget.ranks.size > 1
    state = _identities(run) if shared else None
    for index, micro in enumerate(_micro_batches(batch, run)):
        if run.progress.stopping:
            raise Stopped(f"stopped in step {run.step + 1}")
        # Dropout depends only on the position in training, so no generator state has to be saved.
        place = index * run.budget.ranks.size + run.budget.ranks.index
        torch.manual_seed(seed_of(run.seed, "dropout", run.step, place))
        for name, part in _learn(objective, run, micro, loss_scale).items():
            sums[name] = sums.get(name, 0.0) + part
    if shared and state != _identities(run):
        raise PluginError(
            "`loss` changes `run.state`, which the other processes of the stage do not see",
            where=method_of(objective, "loss"),
            do="Change it in `batches`, from `run.metrics`, or set `gpus: 1`",
        )
    return _numbers(sums, run.device)


def _identities(run: Run) -> dict[str, int]:
    return {name: id(value) for name, value in run.state.items()}


def _numbers(values: Mapping[str, Tensor | float], device: torch.device) -> dict[str, float]:
    """Return the values as numbers. A GPU is waited for once, not once for each."""
    tensors = {name: value.to(device).reshape(()) for name, value in values.items() if isinstance(value, Tensor)}
    if not tensors:
        return {name: float(value) for name, value in values.items()}
    read = dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))
    return {name: float(read.get(name, value)) for name, value in values.items()}


def _learn(objective: Objective, run: Run, micro: MicroRows, loss_scale: float) -> dict[str, Tensor | float]:
    """Run forward and backward of one micro-batch and return its metrics.

    No part of the graph outlives this call. Its nodes are allocated among the activations. If they were held until the
    next micro-batch is read, they would fragment the freed memory, which on the CPU cost up to a sixth of the peak.
    """
    with run.roles.training():
        output = loss_of(objective, run, micro)
        scaled = output.loss if loss_scale == 1 else output.loss * loss_scale
        with calling(objective, "loss", place_of(run, micro)):
            scaled.backward()  # type: ignore[no-untyped-call]
    found = {**output.metrics, "loss": output.loss}
    return {name: value.detach().float() if isinstance(value, Tensor) else value for name, value in found.items()}


def _micro_batches(batch: StepBatch, run: Run) -> Iterator[MicroRows]:
    denominators: Mapping[str, float] = {"rows": float(len(batch.rows)), **batch.denominators}
    rows = _share(batch.rows, run.budget.ranks)
    for group in run.roles.groups(rows, run.budget.tokens, row_sequences):
        yield MicroRows([rows[i] for i in group], denominators, batch.constants, run.device)


def _share(rows: Sequence[Row], ranks: Ranks) -> Sequence[Row]:
    """Return the rows of a step that this rank learns from."""
    if ranks.size == 1:
        return rows
    sequences = [row_sequences(row) for row in rows]
    tokens = [sum(len(sequence.ids) for sequence in some) for some in sequences]
    shares = shares_of(ranks.size, tokens, [some[0] for some in sequences])
    return [rows[i] for i in shares[ranks.index]]
