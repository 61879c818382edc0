"""Observe an optimizer: the roles and rows it uses, the weights its gradient reaches, and the weights it changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from alignment_core.plugin_api import AlignmentOptimizer, LossOutput, MicroBatch, StepBatch
from alignment_core.plugin_calls import method_of
from alignment_core.testing.limits import CALL_SECONDS, time_limit
from alignment_core.testing.report import Fault
from alignment_core.training.contract import batches_of, loss_of, steps_of
from alignment_core.training.run import Run
from alignment_core.training.snapshots import role_of

ROWS = ("preferences", "feedback", "demonstrations", "prompts")
FROZEN = ("reference", "reward")
LOOKED_AT = 8
"""Number of steps in which weights and gradients are compared."""


class Observer:
    """Wraps an optimizer, forwards every call and records what it does."""

    def __init__(self, optimizer: AlignmentOptimizer) -> None:
        self.optimizer, self.needed = optimizer, optimizer.needs()
        self.batches_seen: list[StepBatch] = []
        self._used: set[str] = set()
        self._reached: set[str] = set()
        self._faults: list[str] = []

    def watch(self, run: Run) -> None:
        """Record the initial weights of the run, and wrap its roles and rows."""
        self._run = run
        self._parameters = dict(run.roles.model.named_parameters(prefix="model"))
        self._parameters |= dict(run.roles.heads.named_parameters(prefix="heads"))
        self._parameters |= dict(run.roles.extra.named_parameters(prefix="extra"))
        self._trained = set(run.roles.parameters())
        self._before = {name: weight.detach().clone() for name, weight in self._parameters.items()}
        self._restored, restore = False, run.restore

        def restored() -> None:
            self._restored = True
            restore()

        run.restore = restored  # type: ignore[method-assign]
        run.rewards = self._recorded(run.rewards, "reward")  # type: ignore[method-assign]
        run.generate = self._recorded(run.generate, "prompts")  # type: ignore[method-assign]
        of_run = run.role

        def found(name: str) -> Any:
            self._used.add(f"the snapshot {name}")
            return of_run(name)

        run.role = found  # type: ignore[method-assign]
        for role in ("reference", "value"):
            if run.roles.has(role):
                setattr(run, role, _Recorded(getattr(run, role), role, self._used))
        for kind in ROWS:
            if getattr(self.needed, kind):
                setattr(run.rows, kind, _RecordedRows(getattr(run.rows, kind), kind, self._used))

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # so that errors of the loop name the optimizer
        return type(self.optimizer)

    def _recorded(self, method: Any, need: str) -> Any:
        """Return the method of a run, which then records that the need is used."""

        def call(*args: Any, **settings: Any) -> Any:
            self._used.add(need)
            return method(*args, **settings)

        return call

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)

    def batches(self, run: Any) -> Iterator[StepBatch]:
        made = batches_of(self.optimizer, run)
        while True:
            before = self._sums(snapshots=False)
            with time_limit(CALL_SECONDS, method_of(self.optimizer, "batches", f"step {run.step + 1}")):
                batch = next(made, None)
            if before != self._sums(snapshots=False) and not self._restored:
                self._faults.append("`batches` changes the weights, but only the training loop may do so")
            if batch is None:
                return
            self.batches_seen.append(batch)
            yield batch
            self._reached |= {
                name
                for name, weight in self._parameters.items()
                if weight.grad is not None and bool((weight.grad != 0).any())
            }

    def loss(self, run: Any, micro: MicroBatch) -> LossOutput:
        before = self._sums()
        with time_limit(CALL_SECONDS, method_of(self.optimizer, "loss", f"step {run.step + 1}")):
            output = loss_of(self.optimizer, run, micro)
        if before != self._sums():
            self._faults.append("`loss` changes the weights, but only the training loop may do so")
        return output

    def total_steps(self, run: Any) -> int:
        with time_limit(CALL_SECONDS, method_of(self.optimizer, "total_steps")):
            return steps_of(self.optimizer, run)

    # --- results --------------------------------------------------------------------------------------------------

    def unused(self) -> list[str]:
        """Return the needs that were never used."""
        needed = [need for need in (*ROWS, *FROZEN) if getattr(self.needed, need)]
        needed += [f"the snapshot {name}" for name in self.needed.snapshots]
        return [need for need in needed if need not in self._used]

    def check_gradients(self) -> None:
        """Check which roles the gradient reached.

        Raises:
            Fault: a trained role or a parameter got no gradient, or another role got one.
        """
        for name in self._run.parameters:
            if f"extra.{name}" not in self._reached:
                raise Fault(f"no gradient reaches the parameter `{name}`")
        for role in self.needed.trained:
            if not any(_is_of(role, name) for name in self._reached):
                raise Fault(f"no gradient reaches the {role}, although `needs` asks for it")
        others = sorted({_role(name) for name in self._reached - self._trained})
        if others:
            raise Fault(f"the loss trains {', '.join(others)}, but `needs` does not ask for it")

    def check_weights(self) -> None:
        """Check that only the training loop changed weights.

        Raises:
            Fault: the optimizer changed weights or made them trainable.
        """
        if self._faults:
            raise Fault("; ".join(dict.fromkeys(self._faults)))
        for name, weight in self._parameters.items():
            if name in self._trained:
                continue
            if weight.requires_grad:
                raise Fault(f"the optimizer makes {_role(name)} trainable, but `needs` does not ask for it")
            if not _is_snapshot(name) and not torch.equal(weight, self._before[name]):
                raise Fault(f"the optimizer changes the weights of {_role(name)}, but `needs` does not ask for it")

    def _sums(self, *, snapshots: bool = True) -> list[float]:
        if len(self.batches_seen) > LOOKED_AT:
            return []
        looked_at = (weight for name, weight in self._parameters.items() if snapshots or not _is_snapshot(name))
        return [float(weight.detach().double().sum()) for weight in looked_at]


class _Recorded:
    """A role that records its use."""

    def __init__(self, role: Any, name: str, used: set[str]) -> None:
        self._role, self._name, self._used = role, name, used

    def __getattr__(self, name: str) -> Any:
        self._used.add(self._name)
        return getattr(self._role, name)


class _RecordedRows(list[Any]):
    """Rows that record being read."""

    def __init__(self, rows: Any, name: str, used: set[str]) -> None:
        super().__init__(rows)
        self._name, self._used = name, used

    def __getitem__(self, index: Any) -> Any:
        self._used.add(self._name)
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[Any]:
        self._used.add(self._name)
        return super().__iter__()


def _is_of(role: str, name: str) -> bool:
    return f".{role}." in name


def _is_snapshot(name: str) -> bool:
    return f".{role_of('')}" in name


def _role(name: str) -> str:
    """Return the role of a weight, based on its name."""
    if _is_snapshot(name):
        return "a snapshot"
    roles = ("policy", "reference", "reward", "value")
    return next((f"the {role}" for role in roles if _is_of(role, name)), "the base")
