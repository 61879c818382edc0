"""The rows that ingestion reads, made from votes: one file of thumbs and one of rankings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from alignment_core.feedback.current_votes import Judged

THUMBS, RANKINGS = "thumbs.jsonl", "rankings.jsonl"
"""Two files, because each has one record format: labelled responses and K-way rankings."""

_json = json.JSONEncoder(ensure_ascii=False).encode


def training_row(judged: Judged, value: str, *, metadata: bool = False) -> tuple[str, str] | None:
    """Return the file of a vote and its line there, or None if the vote was withdrawn or skips a ranking.

    Args:
        judged: the vote.
        value: what it says, as the table of votes stores it. It may be that of an earlier vote on the same.
        metadata: whether to add rater, time, model and comment.
    """
    said: Mapping[str, Any] = json.loads(value)
    row = judged.row
    if "up" in said:
        (response,) = judged.responses
        model = f', "model": {_json(response.model)}' if metadata else ""
        text = f'{{"prompt": {judged.prompt}, "completion": {_json(response.text)}, "label": {_json(said["up"])}{model}'
        file = THUMBS
    elif "ranks" in said:
        ranks = said["ranks"]
        completions = ", ".join(
            f'{{"completion": {_json(response.text)}, "rank": {_json(ranks[response.id])}'
            + (f', "model": {_json(response.model)}}}' if metadata else "}")
            for response in judged.responses
        )
        text = f'{{"prompt": {judged.prompt}, "completions": [{completions}]'
        file = RANKINGS
    else:
        return None
    if metadata:
        rated = {"rater": row.rater, "rater_kind": row.rater_kind, "time": row.time, "comment": row.comment}
        return file, f"{text}, {_json(rated)[1:]}"
    return file, text + "}"
