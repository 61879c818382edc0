"""KTO's mismatched sequences: each labelled row's prompt with the response to another prompt (arXiv 2402.01306, 3.1).

The other response is fixed by a hash of the row, so that its reference log-probability can be cached: the rows stand
on a circle by their hashes, and each takes the first one after it that answers another prompt and fits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

TRIES = 32
"""Rows of other prompts that are looked at for a response that fits before the shortest of them is taken."""


def partners(hashes: Any, asked: Any, prompt_tokens: Any, response_tokens: Any, max_length: int) -> Any:
    """For each row the index of the one whose response it is mismatched with; -1 where all answer one prompt.

    Args:
        hashes: a hash of each row, shape (rows,), uint64.
        asked: a hash of each row's prompt.
        prompt_tokens: tokens of each row's prompt.
        response_tokens: tokens of each row's response.
        max_length: tokens that a prompt and a response may have together.
    """
    count = len(hashes)
    chosen = np.full(count, -1, dtype=np.int64)
    if len(np.unique(asked)) < 2:
        return chosen
    circle = np.argsort(hashes, kind="stable")
    place = np.empty(count, dtype=np.int64)
    place[circle] = np.arange(count)
    shortest, tried = np.full(count, -1, dtype=np.int64), np.zeros(count, dtype=np.int64)
    waiting = np.arange(count)
    for step in range(1, count):
        other = circle[(place[waiting] + step) % count]
        foreign = asked[other] != asked[waiting]
        fits = foreign & (prompt_tokens[waiting] + response_tokens[other] <= max_length)
        chosen[waiting[fits]] = other[fits]
        best = shortest[waiting]
        shorter = foreign & ((best < 0) | (response_tokens[other] < response_tokens[best]))
        shortest[waiting[shorter]] = other[shorter]
        tried[waiting] += foreign
        waiting = waiting[~fits & (tried[waiting] < TRIES)]
        if not len(waiting):
            break
    return np.where(chosen < 0, shortest, chosen)
