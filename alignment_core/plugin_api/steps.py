"""The steps of an optimizer: the batch that it yields, the micro-batch that its loss gets, and the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from alignment_core.token_rows import Row, TokenSequence

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The input of one optimizer step."""

    rows: Sequence[Row]
    """The rows of the step. The training loop splits them into micro-batches."""
    denominators: Mapping[str, float] = field(default_factory=dict)
    """Denominators of sums over the complete step, by name. The loop always adds `rows`, the number of rows."""
    constants: Mapping[str, float] = field(default_factory=dict)
    """Numbers for the complete step that were computed without gradient, by name (for example KTO's z0)."""


class MicroBatch(Protocol):
    """Some of a step's rows, with the denominators and constants of the complete step."""

    rows: Sequence[Row]
    denominators: Mapping[str, float]
    constants: Mapping[str, float]

    def sequences(self, name: str) -> list[TokenSequence]:
        """Return the sequence called `name` of each row, in order."""

    def values(self, name: str) -> Tensor:
        """Return the number called `name` of each row: shape (rows,), float32, on the run's device."""

    def token_values(self, name: str) -> Tensor:
        """Return the per-token numbers called `name`: shape (rows, longest completion), zero-padded, float32."""


@dataclass(frozen=True, slots=True)
class LossOutput:
    """The result of `loss` for one micro-batch."""

    loss: Tensor
    """Scalar: a sum over the micro-batch, divided by the step's denominator."""
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)
    """Scalars computed in the same way. The loop adds them up over the micro-batches to get the step's value."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response."""

    prompt: Row
    sequence: TokenSequence
    """Prompt and response. The response includes the stop token if one was sampled."""
    finished: bool
    """True if the response ended with a stop token, false if it reached the length limit."""
    text: str
    """The response, decoded without special tokens."""
    logps: tuple[float, ...] | None = None
    """Log-probability of each response token at the temperature that sampled it, in nats. None if not asked for, or
    not known."""
    entropies: tuple[float, ...] | None = None
    """Entropy of the distribution of each response token, in nats. None like `logps`."""
