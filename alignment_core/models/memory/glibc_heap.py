"""How large the C library's heap grows for the tensors of one process on the CPU.

Resident memory is not the sum of the live tensors. Blocks up to 32 MiB are allocated from one heap, which keeps the
holes between them. Larger blocks are mapped separately and released at once (glibc, `malloc/malloc.c`).
"""

from __future__ import annotations

import bisect

MAPPED_FROM = 32 * 2**20
"""Bytes above which glibc always maps a block separately (`DEFAULT_MMAP_THRESHOLD_MAX`)."""
HEADER, UNIT = 8, 16
"""Bytes that glibc adds to a block, and the unit that block sizes are a multiple of."""
SEARCHED = 64 + 32
"""Bytes beyond its size that an aligned block (PyTorch: 64 bytes) must find free (`_int_memalign`) and then gives back.
A hole therefore does not fit a new tensor of the size that left it."""


class Heap:
    """Best fit with coalescing, as in glibc for large blocks. `peak` is the most bytes held at a time."""

    def __init__(self) -> None:
        self.peak = 0
        self._top = self._mapped = 0
        self._holes: list[tuple[int, int]] = []  # (size, address), sorted: the smallest hole that fits is used
        self._starts: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self._blocks: dict[int, tuple[int | None, int]] = {}

    def take(self, name: int, size: int) -> None:
        """Allocate a block of `size` bytes under a name, by which `give` frees it."""
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
        """Free the block. At the end of the heap, its memory returns to the system."""
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


def heap_for(device: str) -> Heap | None:
    """Return a heap for the CPU, where resident memory counts. On a GPU (None), the tensors themselves count."""
    return Heap() if device == "cpu" else None
