"""The heap that tensors lie in, against blocks placed by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment_core.models.heap import MAPPED_FROM, Heap

MIB = 2**20
BLOCK = MIB + 16
"""Of a tensor of 1 MiB: with its header of 8 bytes, rounded up to 16."""


def test_a_freed_block_at_the_end_is_used_again() -> None:
    heap = Heap()
    for _ in range(3):
        heap.take(1, MIB)
        heap.give(1)
    assert heap.peak == BLOCK


def test_a_hole_does_not_hold_the_next_tensor_of_its_size() -> None:
    """An aligned block of 1 MiB has to find 96 bytes more than the hole that one of 1 MiB left."""
    heap = Heap()
    for name in range(3):
        heap.take(name, MIB)
    heap.give(1)
    heap.take(3, MIB)
    assert heap.peak == 4 * BLOCK
    heap.take(4, MIB - 96)
    assert heap.peak == 4 * BLOCK


def test_holes_side_by_side_are_one() -> None:
    heap = Heap()
    for name in range(4):
        heap.take(name, MIB)
    heap.give(2)
    heap.give(0)
    heap.give(1)
    heap.take(4, 3 * MIB - 96)
    assert heap.peak == 4 * BLOCK


def test_the_smallest_hole_that_fits_is_used() -> None:
    heap = Heap()
    for name, size in enumerate([4 * MIB, MIB, 2 * MIB, MIB]):
        heap.take(name, size)
    heap.give(0)
    heap.give(2)
    full = heap.peak
    heap.take(4, MIB)  # into the hole of 2 MiB, so that the one of 4 stays whole
    heap.take(5, 4 * MIB - 96)
    assert heap.peak == full


def test_a_very_large_block_is_mapped_by_itself_and_given_back() -> None:
    heap = Heap()
    heap.take(0, MIB)
    for name in (1, 2):
        heap.take(name, MAPPED_FROM)
        heap.give(name)
    assert heap.peak == BLOCK + MAPPED_FROM + 16


@pytest.mark.timeout(60)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 40 * MIB)), max_size=200))
def test_it_holds_at_least_what_is_alive_and_forgets_nothing(moves: list[tuple[int, int]]) -> None:
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
