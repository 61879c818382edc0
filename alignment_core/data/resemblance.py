"""Near-duplicates among records: training prompts like held-out ones, and answers like an earlier one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np

from alignment_core.data.facts import Facts
from alignment_core.data.formats.joining import Groups
from alignment_core.data.near import LEADERS, clusters, near_copies, resembling
from alignment_core.data.ondisk import by_hash, in_parts, on_disk, places
from alignment_core.data.parts import mixed
from alignment_core.data.shards import Shards

MOSTLY = 0.5
"""Where more of the training prompts than this resemble held-out ones, the prompts are a template, not leaks."""


def drop_near_duplicates(shards: Shards, kept: Any, held: Any, threshold: float, scratch: Path, facts: Facts) -> None:
    """Clear `kept` of training prompts like a held-out one, and of answers like an earlier one to a like prompt.

    Args:
        shards: all records.
        kept: which of them are used, shape (records,).
        held: which of them are held out, shape (records,).
        threshold: Jaccard similarity from which on two texts are near-duplicates.
        scratch: a folder for temporary files.
        facts: is told what was found.
    """
    numbers = shards.numbers
    first = _first_with_the_prompt(numbers, kept, scratch)
    asking = on_disk(scratch, len(kept), bool)
    for part in in_parts(len(kept)):
        asking[part] = kept[part] & (first[part] == np.arange(part.start, part.stop))

    def prompt_text(record: int) -> str:
        return shards.text(record, "prompt" if numbers["prompt_hash"][record] else "first")

    labels = clusters(shards.signatures(asking, scratch), asking, prompt_text, threshold, scratch)
    leaks = _leaks(labels, asking, held, prompt_text, threshold, scratch)
    for part in in_parts(len(kept)):
        leaks[part] = leaks[first[part]] & kept[part] & ~held[part]
        labels[part] = labels[first[part]]
    _drop_leaks(kept, held, leaks, facts)
    group = on_disk(scratch, len(kept), np.uint64)
    for part in in_parts(len(kept)):
        signs = numbers["sign"][part].astype(np.int64) + 1
        group[part] = mixed(numbers["kind"][part], signs, labels[part])
    copies = _copies(shards, kept, group, threshold, scratch)
    facts.duplicates["near"] += int(np.count_nonzero(copies))
    kept &= ~copies


def _first_with_the_prompt(numbers: Any, kept: Any, scratch: Path) -> Any:
    """For each record the first one with its prompt; where there is no prompt, with its answer."""
    asked = on_disk(scratch, len(kept), np.uint64)
    for part in in_parts(len(kept)):
        prompt = numbers["prompt_hash"][part]
        asked[part] = np.where(prompt != 0, prompt, numbers["first_hash"][part])
    first = on_disk(scratch, len(kept), np.int64)
    for rows in by_hash(asked, kept):
        _, firsts, which = np.unique(asked[rows], return_index=True, return_inverse=True)
        first[rows] = rows[firsts][which]
    return first


def _leaks(labels: Any, asking: Any, held: Any, text: Callable[[int], str], threshold: float, scratch: Path) -> Any:
    """Which prompts of the training split are near-duplicates of a held-out one."""
    leaks, hashes = on_disk(scratch, len(labels), bool), on_disk(scratch, len(labels), np.uint64)
    for part in in_parts(len(labels)):
        hashes[part] = mixed(labels[part])
    for rows in by_hash(hashes, asking):
        label, ours = labels[rows], ~held[rows]
        suspects = rows[np.isin(label, np.intersect1d(label[ours], label[~ours]))]
        suspects = suspects[np.argsort(labels[suspects], kind="stable")]
        for members in np.split(suspects, np.flatnonzero(np.diff(labels[suspects])) + 1):
            mine, theirs = members[~held[members]].tolist(), members[held[members]].tolist()
            leaks[mine] = resembling([text(i) for i in mine], [text(i) for i in theirs[:LEADERS]], threshold)
    return leaks


def _drop_leaks(kept: Any, held: Any, leaks: Any, facts: Facts) -> None:
    count, train = int(np.count_nonzero(leaks)), int(np.count_nonzero(kept & ~held))
    if count > MOSTLY * train:
        facts.warnings.append(
            f"{count} of {train} training records have a prompt much like a "
            "held-out one (a template with small changes?); they stay, so held-out results partly measure memory"
        )
        count = 0
    else:
        kept &= ~leaks
    facts.duplicates["like_held_out"] += count


def _copies(shards: Shards, kept: Any, group: Any, threshold: float, scratch: Path) -> Any:
    """Which records' prompt and completions are near-duplicates of an earlier record's of the same group."""
    candidates = on_disk(scratch, len(kept), bool)
    for rows in by_hash(group, kept):
        _, which, counts = np.unique(group[rows], return_inverse=True, return_counts=True)
        candidates[rows] = (counts[which] > 1) & (shards.numbers["first_hash"][rows] != 0)
    copies = on_disk(scratch, len(kept), bool)
    with Groups() as waiting:
        for part in places(candidates):
            for index in part.tolist():
                texts = shards.text(index, "prompt"), shards.text(index, "first", "second")
                waiting.add(str(group[index]), str(index), texts)
        rows, again = tee(waiting.rows())
        for (_, index, _), copy in zip(
            rows, near_copies(((key, texts) for key, _, texts in again), threshold), strict=True
        ):
            copies[int(index)] = copy
    return copies
