"""The model of glibc's heap, compared with blocks placed by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment_core.models.memory.glibc_heap import MAPPED_FROM, Heap

MIB = 2**20
BLOCK = MIB + 16
"""The block of a 1 MiB tensor, with its 8-byte header, rounded up to a multiple of 16."""


def test_freed_block_at_the_end_is_reused() -> None:
    heap = Heap()
    for _ in range(3):
        heap.take(1, MIB)
        heap.give(1)
    assert heap.peak == BLOCK


def test_hole_is_too_small_for_the_next_tensor_of_its_size() -> None:
    """An aligned block of 1 MiB needs 96 bytes more than the hole left by a block of 1 MiB."""
    heap = Heap()
    for name in range(3):
        heap.take(name, MIB)
    heap.give(1)
    heap.take(3, MIB)
    assert heap.peak == 4 * BLOCK
    heap.take(4, MIB - 96)
    assert heap.peak == 4 * BLOCK


def test_adjacent_holes_are_merged() -> None:
    heap = Heap()
    for name in range(4):
        heap.take(name, MIB)
    heap.give(2)
    heap.give(0)
    heap.give(1)
    heap.take(4, 3 * MIB - 96)
    assert heap.peak == 4 * BLOCK


def test_smallest_hole_that_fits_is_used() -> None:
    heap = Heap()
    for name, size in enumerate([4 * MIB, MIB, 2 * MIB, MIB]):
        heap.take(name, size)
    heap.give(0)
    heap.give(2)
    full = heap.peak
    heap.take(4, MIB)  # goes into the hole of 2 MiB, so that the hole of 4 MiB stays intact
    heap.take(5, 4 * MIB - 96)
    assert heap.peak == full


def test_very_large_block_is_mapped_separately_and_returned() -> None:
    heap = Heap()
    heap.take(0, MIB)
    for name in (1, 2):
        heap.take(name, MAPPED_FROM)
        heap.give(name)
    assert heap.peak == BLOCK + MAPPED_FROM + 16


@pytest.mark.timeout(60)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 40 * MIB)), max_size=200))
def test_peak_covers_live_blocks_and_all_memory_is_returned(moves: list[tuple[int, int]]) -> None:
    heap, alive, most = Heap(), dict[int, int](), 0
    for name, size in moves:
        if name in alive:
            heap.give(name)
            del alive[name]
        else:
            heap.take(name, size)
            alive[name] = size
        most = max(most, sum(alive.values()))
    assert heap.peak >= most
    for name in alive:
        heap.give(name)
    assert (heap._top, heap._mapped, heap._holes) == (0, 0, [])
