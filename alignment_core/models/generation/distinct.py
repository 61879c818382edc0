"""Equal prompts, which are read once."""

from __future__ import annotations

from collections.abc import Sequence


def distinct(prompts: Sequence[tuple[int, ...]]) -> tuple[list[int], list[int]]:
    """Find equal prompts.

    Returns:
        The index of the first prompt of each kind, and for each prompt its kind: the place of that index in the list.
    """
    kinds = {prompt: kind for kind, prompt in enumerate(dict.fromkeys(prompts))}
    taken = [kinds[prompt] for prompt in prompts]
    return [taken.index(kind) for kind in range(len(kinds))], taken
