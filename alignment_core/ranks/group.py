"""The ranks of a stage as processes of `torch.distributed`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from alignment_core.errors import AlignmentError, PluginError, ran_out_of_memory
from alignment_core.progress import Stopped

BACKENDS = {False: "gloo", True: "cpu:gloo,cuda:nccl"}
"""By whether the ranks have cards: NCCL sums the tensors on them. Gloo exchanges the rest, and notices at once if a
rank is gone."""
PATIENCE = timedelta(hours=2)
"""How long a rank waits for another one: the last resort. A rank that ends is noticed at once."""
BUCKET = 2**24
"""Most numbers that are summed at a time: 64 MiB in float32."""
T = TypeVar("T")


class RankLost(Exception):
    """Another rank ended or failed. That rank says why."""


@dataclass(frozen=True)
class _Failure:
    """How a rank's part of shared work failed. The lowest rank is that of the most severe one."""

    severity: int
    rank: int
    message: str
    error: dict[str, str | None] | None = None

    @classmethod
    def of(cls, error: BaseException, rank: int) -> _Failure:
        if isinstance(error, Stopped):
            return cls(1, rank, str(error))
        if ran_out_of_memory(error):
            return cls(2, rank, str(error))
        return cls(0, rank, str(error), error.to_json() if isinstance(error, AlignmentError) else None)

    def as_error(self) -> BaseException:
        """Return what the other ranks raise."""
        if self.severity == 1:
            return Stopped(self.message)
        if self.severity == 2:
            return MemoryError(f"rank {self.rank} ran out of memory: {self.message}")
        return RankLost(f"rank {self.rank} failed") if self.error is None else AlignmentError.from_json(self.error)


class Group:
    """The ranks of a stage (`Ranks`).

    Attributes:
        asked: whether this rank was asked to stop.
    """

    def __init__(self, index: int, size: int) -> None:
        self.index, self.size = index, size
        self.apart = False
        self.asked = False
        self._stopping = False

    @classmethod
    def join(cls, index: int, size: int, *, on_cards: bool) -> Group:
        """Meet the other ranks at the address that the launcher has put into the environment."""
        dist.init_process_group(BACKENDS[on_cards], rank=index, world_size=size, timeout=PATIENCE)
        return cls(index, size)

    def leave(self) -> None:
        """Part from the other ranks."""
        dist.destroy_process_group()

    @property
    def stopping(self) -> bool:
        """Whether to stop. Outside of its part of shared work, a rank knows only of what all ranks know."""
        return self.asked if self.apart else self._stopping

    def together(self, about: str, attempt: Callable[[], T]) -> T:
        if self.apart:
            return attempt()
        result: T | None = None
        mine: BaseException | None = None
        try:
            self.apart = True
            try:
                result = attempt()
            except (Exception, Stopped) as error:
                mine = error
            finally:
                self.apart = False
            failure = None if mine is None else _Failure.of(mine, self.index)
            failures = [found for found in self.gather(about, failure) if found is not None]
            if failures:
                worst = min(failures, key=lambda found: (found.severity, found.rank))
                own = mine is not None and failure is not None and failure.severity == worst.severity
                raise mine if own and mine is not None else worst.as_error()
        finally:
            # Otherwise the error and this frame would hold each other, and with them the tensors of the attempt.
            del mine
        return result  # type: ignore[return-value]

    def gather(self, about: str, value: T) -> list[T]:
        found: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(found, (about, self.asked, value))
        except RuntimeError as error:
            raise RankLost(str(error)) from error
        if any(other != about for other, _, _ in found):
            raise PluginError(
                "the processes of the stage no longer do the same",
                where=f"rank {self.index}",
                got=", ".join(f"rank {rank}: {other}" for rank, (other, _, _) in enumerate(found)),
                do="Take random numbers from `run.random(name)`, and nothing from clocks, the environment or the order "
                "of sets. Or set `gpus: 1`",
            )
        self._stopping = any(asked for _, asked, _ in found)
        return [theirs for _, _, theirs in found]

    def from_first(self, about: str, work: Callable[[], T]) -> T:
        if self.apart:
            return work()
        return self.gather(about, self.together(about, lambda: work() if self.index == 0 else None))[0]  # type: ignore[return-value]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in bucket])
            try:
                dist.all_reduce(flat)
            except RuntimeError as error:
                raise RankLost(str(error)) from error
            sums = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, total in zip(bucket, sums, strict=True):
                tensor.detach().copy_(total.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(other.numel() for other in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
