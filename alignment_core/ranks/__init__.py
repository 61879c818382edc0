"""The processes that share a stage, one per card. Each runs the stage's whole code, and they share what is costly.

All ranks hold the same weights and rows, and so come to the same decisions. They share the micro-batches of a step, the
passes without gradients and the responses of a rollout, and each of them gets every result. A plugin does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class Ranks(Protocol):
    """The ranks of a stage, as one of them sees them. Every rank makes the same calls in the same order.

    Attributes:
        index: number of this rank. Rank 0 alone writes and reports.
        size: number of ranks.
        apart: whether this rank is in its part of shared work, in which nothing is exchanged.
    """

    index: int
    size: int
    apart: bool

    def together(self, about: str, attempt: Callable[[], T]) -> T:
        """Do this rank's part of shared work, and return its result when the parts of all ranks succeeded.

        Raises:
            Exception, Stopped: the part of a rank failed, ran out of memory or was stopped. All ranks raise.
        """

    def gather(self, about: str, value: T) -> list[T]:
        """Return the value of every rank, in their order. `about` names what is exchanged."""

    def from_first(self, about: str, work: Callable[[], T]) -> T:
        """Do work on rank 0 alone, and return its result on every rank. In shared work, a rank does its own."""

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, which is computed in float32."""


class _Alone:
    """The only process of a stage."""

    index, size, apart = 0, 1, False

    def together(self, about: str, attempt: Callable[[], T]) -> T:
        return attempt()

    def gather(self, about: str, value: T) -> list[T]:
        return [value]

    def from_first(self, about: str, work: Callable[[], T]) -> T:
        return work()

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        pass


ALONE: Ranks = _Alone()
