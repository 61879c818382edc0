"""The rows that ingestion reads, made from votes: one file of thumbs and one of rankings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from json.encoder import encode_basestring as quoted

from alignment_core.feedback.current_votes import Judged

THUMBS, RANKINGS = "thumbs.jsonl", "rankings.jsonl"
"""Two files, because each has one record format: labelled responses and K-way rankings."""

_LABELS = {json.dumps({"up": up}): json.dumps(up) for up in (True, False, None)}


def training_row(judged: Judged, value: str, *, metadata: bool = False) -> tuple[str, str] | None:
    """Return the file of a vote and its line there, or None if the vote was withdrawn or skips a ranking.

    Args:
        judged: the vote.
        value: what it says, as the table of votes stores it. It may be that of an earlier vote on the same.
        metadata: whether to add rater, time, model and comment.
    """
    row = judged.row
    if (label := _LABELS.get(value)) is not None:
        ((_, text, model),) = judged.answers
        line = f'{{"prompt": {judged.prompt}, "completion": {quoted(text)}, "label": {label}'
        line += f', "model": {quoted(model)}' if metadata else ""
        file = THUMBS
    elif "ranks" in (said := json.loads(value)):
        ranks: Mapping[str, int] = said["ranks"]
        completions = ", ".join(
            [
                f'{{"completion": {quoted(text)}, "rank": {ranks[name]}'
                + (f', "model": {quoted(model)}}}' if metadata else "}")
                for name, text, model in judged.answers
            ]
        )
        line = f'{{"prompt": {judged.prompt}, "completions": [{completions}]'
        file = RANKINGS
    else:
        return None
    if metadata:
        rater = f'"rater": {quoted(row.rater)}, "rater_kind": {quoted(row.rater_kind)}'
        line += f', {rater}, "time": {row.time!r}, "comment": {quoted(row.comment)}'
    return file, line + "}"
