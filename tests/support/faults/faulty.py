"""Optimizers that each violate one rule of the contract, to test whether the conformance kit finds it."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from alignment_core.plugin_api import AlignmentOptimizer, LossOutput, Needs, Row, StepBatch


class Sound(AlignmentOptimizer):
    """Follows the contract: a squared margin of preference pairs."""

    name: Literal["sound"] = "sound"
    target: float = Field(1.0, gt=0)
    """Target margin in nats."""

    def needs(self) -> Needs:
        return Needs(preferences=True, reference=True)

    def batches(self, run: Any) -> Iterator[StepBatch]:
        for rows in run.shuffled(run.preferences, self.batch_size, self.epochs):
            yield StepBatch(rows)

    def errors(self, run: Any, micro: Any) -> Any:
        sequences = micro.sequences("chosen") + micro.sequences("rejected")
        chosen, rejected = (run.policy.logps(sequences) - run.reference.logps(sequences)).chunk(2)
        return (chosen - rejected - self.target) ** 2

    def loss(self, run: Any, micro: Any) -> LossOutput:
        return LossOutput(self.errors(run, micro).sum() / micro.denominators["rows"])


class Detached(Sound):
    """A loss that carries no gradient."""

    def loss(self, run: Any, micro: Any) -> LossOutput:
        return LossOutput(super().loss(run, micro).loss.detach())


class Diverging(Sound):
    """A loss that is NaN."""

    def loss(self, run: Any, micro: Any) -> LossOutput:
        return LossOutput(super().loss(run, micro).loss * float("nan"))


class TrainsTheReference(Sound):
    """Makes a frozen role trainable and lets its gradient flow."""

    def loss(self, run: Any, micro: Any) -> LossOutput:
        for name, weight in run.policy.roles.model.named_parameters():
            if ".reference." in name:
                weight.requires_grad_(True)
        sequences = micro.sequences("chosen")
        moving = run.reference.token_logps(sequences).logps.sum()
        return LossOutput(super().loss(run, micro).loss + moving / micro.denominators["rows"])


class NeverTrainsTheValue(Sound):
    """Declares a value model that its loss does not touch."""

    def needs(self) -> Needs:
        return Needs(preferences=True, reference=True, value=True)


class UntrainedParameter(Sound):
    """Has a weight of its own that its loss does not use."""

    def parameters(self, width: int) -> dict[str, float]:
        return {"scale": 1.0}


class MovesASnapshotInTheLoss(Sound):
    """Moves a snapshot once per micro-batch."""

    def needs(self) -> Needs:
        return Needs(preferences=True, reference=True, snapshots=("old",))

    def loss(self, run: Any, micro: Any) -> LossOutput:
        run.snapshot("old")
        return super().loss(run, micro)


class UndeclaredReference(Sound):
    """Uses the reference without declaring it."""

    def needs(self) -> Needs:
        return Needs(preferences=True)


class UndeclaredRows(Sound):
    """Uses labelled responses without declaring them."""

    def batches(self, run: Any) -> Iterator[StepBatch]:
        assert len(run.feedback) > 0
        yield from super().batches(run)


class MeanOverTheMicroBatch(Sound):
    """A mean that depends on how many rows the micro-batch happens to hold."""

    def loss(self, run: Any, micro: Any) -> LossOutput:
        return LossOutput(self.errors(run, micro).mean())


class CountsPadding(Sound):
    """Divides by the padded width, which depends on the longest row of the micro-batch."""

    def loss(self, run: Any, micro: Any) -> LossOutput:
        logps = run.policy.token_logps(micro.sequences("chosen")).logps
        return LossOutput(-logps.mean(dim=1).sum() / micro.denominators["rows"])


class MeanMetric(Sound):
    """A metric that is a mean of the micro-batch instead of a share of the step."""

    def loss(self, run: Any, micro: Any) -> LossOutput:
        errors = self.errors(run, micro)
        return LossOutput(errors.sum() / micro.denominators["rows"], {"error": errors.mean()})


class ForgetsItsState(Sound):
    """Keeps a running factor in the class instead of `run.state`."""

    seen: ClassVar[list[float]] = []

    def batches(self, run: Any) -> Iterator[StepBatch]:
        for batch in super().batches(run):
            self.seen.append(1.0)
            yield StepBatch(batch.rows, constants={"factor": 1 + 0.1 * len(self.seen)})

    def loss(self, run: Any, micro: Any) -> LossOutput:
        return LossOutput(micro.constants["factor"] * super().loss(run, micro).loss)


class ForgetsWithinTheGenerator(Sound):
    """Keeps a running factor in a local variable, which a resumed run restarts."""

    def batches(self, run: Any) -> Iterator[StepBatch]:
        factor = 1.0
        for batch in super().batches(run):
            factor *= 1.1
            yield StepBatch(batch.rows, constants={"factor": factor})

    def loss(self, run: Any, micro: Any) -> LossOutput:
        return LossOutput(micro.constants["factor"] * super().loss(run, micro).loss)


class Unseeded(Sound):
    """Draws from Python's global random numbers."""

    def batches(self, run: Any) -> Iterator[StepBatch]:
        for _ in range(run.step, 6):
            yield StepBatch(random.sample(list(run.preferences), 4))


class StepsByItself(Sound):
    """Moves the weights between the loop's steps."""

    def batches(self, run: Any) -> Iterator[StepBatch]:
        for batch in super().batches(run):
            for weight in run.policy.roles.parameters().values():
                weight.mul_(0.99)
            yield batch


class CallsBackward(Sound):
    """Accumulates its own gradient."""

    def loss(self, run: Any, micro: Any) -> LossOutput:
        super().loss(run, micro).loss.backward()
        return super().loss(run, micro)


class ReturnsItsBatches(Sound):
    """Computes all batches before the first step."""

    def batches(self, run: Any) -> Any:
        return list(super().batches(run))


class Misspells(Sound):
    """Asks for a value that its rows do not have."""

    def loss(self, run: Any, micro: Any) -> LossOutput:
        return LossOutput(super().loss(run, micro).loss + micro.values("magrin").sum())


class KeepsATensor(Sound):
    """Stores a tensor of one step in itself and uses it in the next."""

    kept: ClassVar[list[Any]] = []

    def loss(self, run: Any, micro: Any) -> LossOutput:
        errors = self.errors(run, micro)
        loss = errors.sum() + 0.1 * sum(self.kept)
        self.kept[:] = [errors.mean()]
        return LossOutput(loss / micro.denominators["rows"])


class NeedsNothing(Sound):
    """Fails in `needs` with the checked settings only."""

    def needs(self) -> Needs:
        return Needs(preferences=True, reference=True) if self.batch_size != 4 else {}  # type: ignore[return-value]


class KeepsTheGraph(Sound):
    """Puts a tensor into the state that keeps every step's graph alive."""

    def loss(self, run: Any, micro: Any) -> LossOutput:
        output = super().loss(run, micro)
        run.state["last"] = output.loss
        return output


class Spendthrift(Sound):
    """Runs the policy ten times where once is enough."""

    def loss(self, run: Any, micro: Any) -> LossOutput:
        losses = [self.errors(run, micro).sum() / micro.denominators["rows"] for _ in range(10)]
        return LossOutput(sum(losses[1:], start=losses[0]) / 10)


class Sluggish(Sound):
    """Waits without using the CPU, like an optimizer that calls a service."""

    def loss(self, run: Any, micro: Any) -> LossOutput:
        time.sleep(0.3)
        return super().loss(run, micro)


class Endless(Sound):
    """Never ends."""

    def batches(self, run: Any) -> Iterator[StepBatch]:
        while True:
            yield StepBatch(run.preferences[:4])


class BadDefault(Sound):
    """A default that its own bound excludes."""

    target: float = Field(0.0, gt=0)
    """Target margin in nats."""


class NoDefault(Sound):
    """Cannot be chosen by its name alone."""

    target: float = Field(gt=0)
    """Target margin in nats."""


class TakesAnything(Sound):
    """Silently accepts a misspelled setting."""

    model_config = ConfigDict(extra="ignore")


class Undescribed(Sound):
    """A setting without a docstring."""

    mystery: float = 1.0


class NotPlain(Sound):
    """A setting that is code."""

    shape: Any = Field(default_factory=lambda: lambda margin: margin)
    """Function applied to the margin."""


class FromTheFuture(Sound):
    """Written for another version of the contract."""

    api_version: ClassVar[int] = 99


class ClashingSetting(Sound):
    """Redefines a common setting with another meaning."""

    batch_size: str = "large"  # type: ignore[assignment]
    """Size of one optimizer step, as text."""


class RowsOfOne(Sound):
    """Creates its own rows, one per step."""

    def batches(self, run: Any) -> Iterator[StepBatch]:
        for row in run.preferences[run.step :]:
            yield StepBatch([Row(row.id, row.sequences, row.values)])

    def total_steps(self, run: Any) -> int:
        return len(run.preferences)


class AdvisesInWords(Sound):
    """Returns text as its advice."""

    def advice(self, trained: Any, evaluated: Any) -> Any:
        return ["lower the learning rate"]


class CountsOnItsMetrics(Sound):
    """Fails where its metrics were not measured, as in a run that is only planned."""

    def advice(self, trained: Any, evaluated: Any) -> Any:
        return [] * int(trained["loss"])


class HeldByNothing(Sound):
    """Names a setting that it does not have."""

    kl_setting: ClassVar[str | None] = "beta_"


FAULTS: dict[type[AlignmentOptimizer], tuple[str, str]] = {
    Detached: ("loss", "not a differentiable scalar"),
    Diverging: ("loss", "no longer finite"),
    TrainsTheReference: ("weights", "the optimizer makes the reference trainable, but `needs` does not ask for it"),
    NeverTrainsTheValue: ("gradient", "no gradient reaches the value"),
    UntrainedParameter: ("gradient", "no gradient reaches the parameter `scale`"),
    MovesASnapshotInTheLoss: ("loss", "a snapshot was moved within `loss`"),
    UndeclaredReference: ("declared needs", "Return `Needs(reference=True, …)` from `needs`"),
    UndeclaredRows: ("declared needs", "Return `Needs(feedback=True, …)` from `needs`"),
    MeanOverTheMicroBatch: ("micro-batches and padding", "depends on how it is split"),
    CountsPadding: ("micro-batches and padding", "depends on how it is split"),
    MeanMetric: ("micro-batches and padding", "error of one step depends on how it is split"),
    ForgetsItsState: ("repeats", "two runs with the same seed differ"),
    ForgetsWithinTheGenerator: ("resumes", "differs from an uninterrupted one"),
    Unseeded: ("repeats", "two runs with the same seed differ"),
    StepsByItself: ("weights", "`batches` changes the weights"),
    CallsBackward: ("loss", "it calls `backward`, but only the training loop may do so"),
    ReturnsItsBatches: ("loss", "it does not yield its batches. got list, expected a generator. `yield` each"),
    Misspells: ("loss", "has no value of this name. got magrin, expected one of margin. Did you mean `margin`?"),
    KeepsATensor: ("loss", "that of an earlier step, if it uses a tensor that was stored without `detach()`"),
    NeedsNothing: ("declared needs", "it does not return what the optimizer needs. got dict, expected Needs(…)"),
    KeepsTheGraph: ("resumes", "keeps the autograd graph of last"),
    Spendthrift: ("cost", "× its memory"),
    Sluggish: ("cost", "× DPO's time"),
    AdvisesInWords: ("advice", "it does not return a list of advice. got str"),
    CountsOnItsMetrics: ("advice", "it raised KeyError: 'loss'"),
    HeldByNothing: ("advice", "`kl_setting` is 'beta_', which is none of its settings"),
    Endless: ("loss", "`batches` continues after the 6 steps that `total_steps` announces"),
    BadDefault: ("defaults", "the default of `target` violates its own bounds"),
    NoDefault: ("defaults", "no default for target"),
    TakesAnything: ("settings are validated", "an unknown setting is accepted"),
    Undescribed: ("settings are described", "no docstring under mystery"),
    NotPlain: ("settings serialize", "not plain JSON"),
    FromTheFuture: ("declaration", "written for plugin API 99, but alignment-flows has plugin API 1"),
    ClashingSetting: ("declaration", "`batch_size` has the default 'large'"),
    RowsOfOne: ("micro-batches and padding", "splitting cannot be checked"),
}
"""The check that must find each fault, and part of its message."""
