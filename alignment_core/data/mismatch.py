"""KTO's mismatched sequences: each labelled row's prompt with the response to another prompt (arXiv 2402.01306, 3.1).

The other response is fixed by a hash of the row, so that its reference log-probability can be cached: the rows stand
on a circle by their hashes, and each takes the first one after it that answers another prompt and fits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from alignment_core.data.ondisk import by_hash, in_parts, on_disk, spooled

TRIES = 32
"""Rows of other prompts that are looked at for a response that fits before the shortest of them is taken."""


def partners(hashes: Any, asked: Any, prompt_tokens: Any, response_tokens: Any, max_length: int, scratch: Path) -> Any:
    """For each row the index of the one whose response it is mismatched with; -1 where all answer one prompt.

    Args:
        hashes: a hash of each row, shape (rows,), uint64.
        asked: a hash of each row's prompt.
        prompt_tokens: tokens of each row's prompt.
        response_tokens: tokens of each row's response.
        max_length: tokens that a prompt and a response may have together.
        scratch: a folder for temporary files.
    """
    count = len(hashes)
    chosen = on_disk(scratch, count, np.int64)
    if all((asked[part] == asked[0]).all() for part in in_parts(count)):
        chosen[:] = -1
        return chosen
    groups = by_hash(hashes, np.ones(count, dtype=bool))
    circle = spooled(
        scratch, {"row": np.int64}, ({"row": rows[np.argsort(hashes[rows], kind="stable")]} for rows in groups)
    )["row"]
    for part in in_parts(count):
        rows = circle[part]
        # Each array below is as long as `rows`; `waiting` are places in them.
        found, shortest = np.full(len(rows), -1, dtype=np.int64), np.full(len(rows), -1, dtype=np.int64)
        tried, waiting = np.zeros(len(rows), dtype=np.int64), np.arange(len(rows))
        for step in range(1, count):
            mine, other = rows[waiting], circle[(part.start + waiting + step) % count]
            foreign = asked[other] != asked[mine]
            fits = foreign & (prompt_tokens[mine] + response_tokens[other] <= max_length)
            found[waiting[fits]] = other[fits]
            best = shortest[waiting]
            shorter = foreign & ((best < 0) | (response_tokens[other] < response_tokens[best]))
            shortest[waiting[shorter]] = other[shorter]
            tried[waiting] += foreign
            waiting = waiting[~fits & (tried[waiting] < TRIES)]
            if not len(waiting):
                break
        chosen[rows] = np.where(found < 0, shortest, found)
    return chosen
