"""The parts of some work that ranks do: each item once, about the same number of tokens, prompts together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from alignment_core.models.roles.shares import shares_of
from alignment_core.plugin_api import TokenSequence


@given(size=st.integers(1, 5), tokens=st.lists(st.integers(1, 500), min_size=1, max_size=40))
def test_each_item_is_in_one_part_and_parts_differ_by_little(size: int, tokens: list[int]) -> None:
    shares = shares_of(size, tokens)
    assert len(shares) == size
    assert sorted(i for share in shares for i in share) == list(range(len(tokens)))
    # Both ends of a part are at most half an item from where an even cut would be.
    assert all(abs(sum(tokens[i] for i in share) - sum(tokens) / size) <= max(tokens) for share in shares)


def test_by_hand() -> None:
    assert shares_of(2, [5, 5, 5, 5]) == [[0, 1], [2, 3]]
    assert shares_of(2, [9, 1, 1, 1]) == [[0], [1, 2, 3]]
    assert shares_of(3, [4, 4]) == [[0], [], [1]]


def test_items_with_the_same_prompt_stay_together() -> None:
    """Their prompts alternate in the order of the items. 16 is the shortest prompt that is worth sharing."""
    a, b = (tuple(range(start, start + 16)) for start in (3, 50))
    prompts = [TokenSequence((*prompt, 7), 16) for prompt in (a, b, a, b)]
    assert shares_of(2, [17] * 4, prompts) == [[0, 2], [1, 3]]
