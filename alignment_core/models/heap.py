"""How large the C library's heap becomes under the tensors of one process, on the CPU.

Resident memory is not the sum of the tensors that are alive: blocks up to 32 MiB are carved from one heap, which keeps
the holes between them, and larger ones are mapped by themselves and given back at once (glibc, `malloc/malloc.c`).
"""

from __future__ import annotations

import bisect

MAPPED_FROM = 32 * 2**20
"""Bytes above which glibc always maps a block by itself (`DEFAULT_MMAP_THRESHOLD_MAX`)."""
HEADER, UNIT = 8, 16
"""A block's own bytes, and what its size is a multiple of."""
SEARCHED = 64 + 32
"""Beyond a block's size, what an aligned one (PyTorch: 64 bytes) has to find free (`_int_memalign`), and then gives
back: so a hole does not hold the next tensor of the size that left it."""


class Heap:
    """Best fit with coalescing, as glibc does it for large blocks; `peak` is the most that was held at a time."""

    def __init__(self) -> None:
        self.peak = 0
        self._top = self._mapped = 0
        self._holes: list[tuple[int, int]] = []  # (size, address), sorted: the smallest that fits is used
        self._starts: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self._blocks: dict[int, tuple[int | None, int]] = {}

    def take(self, name: int, size: int) -> None:
        """A block of `size` bytes that `give` will know by its name."""
        size = -(-(size + HEADER) // UNIT) * UNIT
        place = bisect.bisect_left(self._holes, (size + SEARCHED, 0))
        address: int | None = None
        if place < len(self._holes):
            room, address = self._holes[place]
            self._close(address, room)
            self._open(address + size, room - size)
        elif size > MAPPED_FROM:
            self._mapped += size
        else:
            address = self._top
            self._top += size
        self._blocks[name] = (address, size)
        self.peak = max(self.peak, self._top + self._mapped)

    def give(self, name: int) -> None:
        """The block is free; at the heap's end it is the system's again."""
        address, size = self._blocks.pop(name)
        if address is None:
            self._mapped -= size
        else:
            self._open(address, size)

    def _open(self, address: int, size: int) -> None:
        if (start := self._ends.get(address)) is not None:
            self._close(start, address - start)
            address, size = start, size + address - start
        if (after := self._starts.get(address + size)) is not None:
            self._close(address + size, after)
            size += after
        if address + size == self._top:
            self._top = address
            return
        bisect.insort(self._holes, (size, address))
        self._starts[address], self._ends[address + size] = size, address

    def _close(self, address: int, size: int) -> None:
        del self._holes[bisect.bisect_left(self._holes, (size, address))]
        del self._starts[address], self._ends[address + size]


def heap_of(device: str) -> Heap | None:
    """What tensors lie in on a type of device where that is resident memory; of a GPU, the tensors are measured."""
    return Heap() if device == "cpu" else None
