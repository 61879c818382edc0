"""Call the methods of an objective, and check what they return against the contract of `plugin_api`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any, Protocol

from torch import Tensor

from alignment_core.config import Moments
from alignment_core.errors import PluginError
from alignment_core.plugin_api import LossOutput, MicroBatch, Row, StepBatch, TokenSequence
from alignment_core.plugin_calls import calling, method_of, named
from alignment_core.training.run import Run

RESERVED = ("step", "loss", "learning_rate")
"""Metrics that the loop reports itself, beside those that start with `GRAD_NORM`."""
GRAD_NORM = "grad_norm"
ENDED = object()


class Objective(Protocol):
    """What the loop trains: an optimizer plugin, or SFT or the reward model, which have the same interface."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def schedule(self) -> str: ...
    @property
    def warmup_fraction(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def adamw(self) -> Moments: ...
    @property
    def max_loss_growth(self) -> float | None: ...
    @property
    def max_grad_norm(self) -> float: ...

    def batches(self, run: Any) -> Iterator[StepBatch]: ...
    def loss(self, run: Any, micro: MicroBatch) -> LossOutput: ...
    def total_steps(self, run: Any) -> int: ...


def steps_of(objective: Objective, run: Run) -> int:
    """Return the number of steps that the objective announces.

    Raises:
        PluginError: `total_steps` raised, or returned something else than a number of steps.
    """
    with calling(objective, "total_steps"):
        total = objective.total_steps(run)
    if not isinstance(total, int) or isinstance(total, bool) or total < 0:
        raise PluginError(
            "it does not return a number of steps",
            where=method_of(objective, "total_steps"),
            got=repr(total),
            expected="a whole number, such as `epochs * -(-len(rows) // batch_size)`",
        )
    return total


def batches_of(objective: Objective, run: Run) -> Iterator[StepBatch]:
    """Yield the batches of the objective.

    Raises:
        PluginError: `batches` raised, or yielded something else than a usable `StepBatch`.
    """
    with calling(objective, "batches"):
        made: object = objective.batches(run)
    if not isinstance(made, Iterator):
        raise PluginError(
            "it does not yield its batches",
            where=method_of(objective, "batches"),
            got=type(made).__name__,
            expected="a generator",
            do="`yield` each `StepBatch` when it is needed: what is computed earlier does not see the updated weights",
        )
    while True:
        step, place = run.step, f"step {run.step + 1}"
        with calling(objective, "batches", place):
            batch = next(made, ENDED)
            if run.step != step:
                raise PluginError("it changes `run.step`, which only the training loop may do")
        if batch is ENDED:
            return
        yield _checked(batch, method_of(objective, "batches", place))


def _checked(batch: object, where: str) -> StepBatch:
    if not isinstance(batch, StepBatch):
        raise PluginError(
            "it does not yield a `StepBatch`", where=where, got=type(batch).__name__, expected="StepBatch(rows)"
        )
    if len(batch.rows) == 0:
        raise PluginError(
            "a step without rows",
            where=where,
            expected="at least one row",
            do="Leave the step out, and count it in `total_steps` only if it is yielded",
        )
    wrong = next((flaw for row in batch.rows if (flaw := _row_flaw(row)) is not None), None)
    if wrong is not None:
        raise PluginError(
            "it yields something else than rows with sequences",
            where=where,
            got=wrong,
            expected="Row(id, {name: TokenSequence(ids, start)}, {name: number}), as in `run.preferences`",
        )
    for kind, numbers in (("denominator", batch.denominators), ("constant", batch.constants)):
        for name, number in numbers.items():
            _check_number(kind, name, number, where)
    return batch


def _row_flaw(row: object) -> str | None:
    if not isinstance(row, Row):
        return type(row).__name__
    if not row.sequences:
        return f"a row {row.id!r} without sequences"
    for name, sequence in row.sequences.items():
        if not isinstance(sequence, TokenSequence):
            return f"{type(sequence).__name__} as the sequence `{name}` of the row {row.id!r}"
        if not isinstance(sequence.ids, tuple):
            return (
                f"{type(sequence.ids).__name__} as the ids of the sequence `{name}` of the row {row.id!r}, not a tuple"
            )
    text = next((name for name, value in row.values.items() if isinstance(value, str)), None)
    return None if text is None else f"text as the value `{text}` of the row {row.id!r}"


def _check_number(kind: str, name: str, number: object, where: str) -> None:
    usable = isinstance(number, Real) and math.isfinite(number) and (kind == "constant" or float(number) > 0)
    if not usable:
        raise PluginError(
            f"the {kind} `{name}` of a step is not usable",
            where=where,
            got=type(number).__name__ if isinstance(number, Tensor) else repr(number),
            expected="a finite number" + (" above 0" if kind == "denominator" else ""),
            do="Use `float(…)` of a tensor" if isinstance(number, Tensor) else None,
        )


def loss_of(objective: Objective, run: Run, micro: MicroBatch) -> LossOutput:
    """Return the loss of a micro-batch.

    Raises:
        PluginError: `loss` raised, called `backward`, or returned something that the loop cannot use.
    """
    place = place_of(run, micro)
    before = _gradients(run)
    with calling(objective, "loss", place):
        output: object = objective.loss(run, micro)
    where = method_of(objective, "loss", place)
    after = _gradients(run)
    if any(after[name] != gradient for name, gradient in before.items() if name in after):
        raise PluginError(
            "it calls `backward`, but only the training loop may do so",
            where=where,
            do="Return the loss in a `LossOutput`. The loop calls `backward` and updates the weights",
        )
    if not isinstance(output, LossOutput):
        raise PluginError(
            "the loss is not a `LossOutput`",
            where=where,
            got=type(output).__name__,
            expected="LossOutput(loss, metrics)",
        )
    _check_loss(output.loss, where)
    _check_metrics(output.metrics, where)
    return output


def place_of(run: Run, micro: MicroBatch) -> str:
    """Return the step and the rows of a micro-batch, for messages."""
    return f"step {run.step + 1}, {named([row.id for row in micro.rows])}"


def _gradients(run: Run) -> dict[str, tuple[int, int]]:
    """Return what changes if a gradient is written: the tensor, and its count of changes in place."""
    return {
        name: (0, 0) if weight.grad is None else (id(weight.grad), weight.grad._version)
        for name, weight in run.roles.parameters().items()
    }


def _check_loss(loss: object, where: str) -> None:
    tensor = isinstance(loss, Tensor)
    if isinstance(loss, Tensor) and loss.dim() == 0 and loss.requires_grad:
        return
    raise PluginError(
        "the loss is not a differentiable scalar",
        where=where,
        got=f"shape {tuple(loss.shape)}, requires_grad {loss.requires_grad}"  # type: ignore[attr-defined]
        if tensor
        else type(loss).__name__,
        expected="a sum over the micro-batch divided by the step's denominator, computed with `run.policy`",
        do="Do not `detach` the loss, and compute it from tensors of this call" if tensor else "Return a tensor",
    )


def _check_metrics(metrics: object, where: str) -> None:
    if not isinstance(metrics, Mapping):
        raise PluginError(
            "the metrics are not a mapping", where=where, got=type(metrics).__name__, expected="{name: number}"
        )
    for name, value in metrics.items():
        if name in RESERVED or str(name).startswith(GRAD_NORM):
            raise PluginError(
                f"the metric `{name}` has the name of a metric that the training loop reports",
                where=where,
                do=f"Rename it. The names {', '.join(RESERVED)} and {GRAD_NORM}… are taken",
            )
        single = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, Real)
        if not single or not isinstance(name, str):
            raise PluginError(
                f"the metric `{name}` is not a number",
                where=where,
                got=f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__,
                expected="a scalar: a sum over the micro-batch divided by the step's denominator",
            )
