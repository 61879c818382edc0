"""An optimizer whose methods a test replaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

from alignment_core.plugin_api import AlignmentOptimizer, LossOutput, Needs, Row, StepBatch, TokenSequence

Batches = Callable[[Any], Any]
Loss = Callable[[Any, Any], Any]

LONE = Row("lone", {"chosen": TokenSequence((1, 2, 3), 1)}, {"margin": 1.0, "steps": (1.0, 2.0)})


class Misfit(AlignmentOptimizer):
    """Yields, returns and announces what a test says."""

    name: Literal["misfit"] = "misfit"
    yielded: ClassVar[Batches]
    returned: ClassVar[Loss]
    announced: ClassVar[Any]

    def needs(self) -> Needs:
        return Needs(preferences=True)

    def batches(self, run: Any) -> Any:
        return type(self).yielded(run)

    def loss(self, run: Any, micro: Any) -> Any:
        return type(self).returned(run, micro)

    def total_steps(self, run: Any) -> Any:
        return type(self).announced


def good_batches(run: Any) -> Iterator[StepBatch]:
    """Yield one epoch in steps of four rows."""
    for rows in run.shuffled(run.preferences, 4, 1):
        yield StepBatch(rows)


def good_loss(run: Any, micro: Any) -> LossOutput:
    """Return the mean negative log-likelihood of the chosen completions of the step."""
    return LossOutput(-run.policy.logps(micro.sequences("chosen")).sum() / micro.denominators["rows"])


def steps(*made: Any) -> Batches:
    return lambda run: iter(made)


def misfit(yielded: Batches = good_batches, returned: Loss = good_loss, announced: Any = 3) -> type[Misfit]:
    """Return an optimizer class with these methods."""

    class Made(Misfit):
        pass

    Made.yielded, Made.returned, Made.announced = staticmethod(yielded), staticmethod(returned), announced
    return Made
