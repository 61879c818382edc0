"""Sequences are split into passes of least total cost, counting padding and the passes themselves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from alignment_core.models.passes.batching import least_padding

lengths_of = st.lists(st.integers(1, 40), min_size=1, max_size=9)


def cost(groups: list[list[int]], lengths: list[int], call_cost: int) -> int:
    return sum(len(group) * max(lengths[i] for i in group) + call_cost for group in groups)


def cheapest(sizes: list[int], budget: int, call_cost: int) -> int:
    """Return the least cost over all ways to cut the sorted sizes, by brute force."""
    if not sizes:
        return 0
    return min(
        count * sizes[0] + call_cost + cheapest(sizes[count:], budget, call_cost)
        for count in range(1, len(sizes) + 1)
        if count == 1 or count * sizes[0] <= budget
    )


@given(lengths_of, st.integers(1, 200), st.integers(0, 60))
def test_cost_is_minimal_and_every_index_occurs_once(lengths: list[int], budget: int, call_cost: int) -> None:
    groups = least_padding(lengths, budget, call_cost)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget for group in groups)
    assert cost(groups, lengths, call_cost) == cheapest(sorted(lengths, reverse=True), budget, call_cost)


def test_free_passes_leave_no_padding_and_expensive_ones_are_merged() -> None:
    assert cost(least_padding([5, 9, 5, 9], 100, 0), [5, 9, 5, 9], 0) == 28
    assert least_padding([5, 9, 5, 9], budget=100, call_cost=50) == [[1, 3, 0, 2]]
