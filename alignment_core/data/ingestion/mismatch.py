"""KTO's mismatched sequences: each labelled row's prompt with a response to another prompt (arXiv 2402.01306, 3.1).

The other response is fixed by a hash of the row, so that its reference log-probability can be cached. The rows are
arranged in a circle, sorted by hash. Each row uses the next response that answers another prompt and fits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from alignment_core.data.dataset.disk_arrays import collect_columns, disk_array, hash_groups, slices

TRIES = 32
"""Rows with another prompt that are tried. If none of their responses fits, the shortest one is used."""


def mismatched_rows(
    hashes: Any, asked: Any, prompt_tokens: Any, response_tokens: Any, max_length: int, scratch: Path
) -> Any:
    """Return for each row the index of the row whose response it is paired with, or -1 if all rows have one prompt.

    Args:
        hashes: a hash of each row, shape (rows,), uint64.
        asked: a hash of each row's prompt.
        prompt_tokens: tokens of each row's prompt.
        response_tokens: tokens of each row's response.
        max_length: maximum number of tokens of a prompt and a response together.
        scratch: a folder for temporary files.
    """
    count = len(hashes)
    chosen = disk_array(scratch, count, np.int64)
    if all((asked[part] == asked[0]).all() for part in slices(count)):
        chosen[:] = -1
        return chosen
    groups = hash_groups(hashes, np.ones(count, dtype=bool))
    circle = collect_columns(
        scratch, {"row": np.int64}, ({"row": rows[np.argsort(hashes[rows], kind="stable")]} for rows in groups)
    )["row"]
    for part in slices(count):
        rows = circle[part]
        # The arrays have one entry per row of `rows`. `waiting` holds indices into them.
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
