"""What a vote says, as the JSON in the column `value` of the table of votes. The column `comment` holds the comment.

| value | the rater |
|---|---|
| `{"up": true}`, `{"up": false}`, `{"up": null}` | gave a thumb to a response, or only a comment |
| `{"ranks": {ID: RANK, …}}` | ranked responses to one prompt: 1 is best, equal ranks are a tie |
| `{"ranks": {…}, "edited": ID}` | wrote the response `ID`, better than all others, from one of them |
| `{"bad": [ID, …]}` | found all responses bad |
| `{"skipped": true}` | skipped a ranking task |
| `{"withdrawn": true}` | withdrew the vote before |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, or_

WITHDRAWN: Mapping[str, Any] = {"withdrawn": True}
SKIPPED: Mapping[str, Any] = {"skipped": True}
UP, DOWN = json.dumps({"up": True}), json.dumps({"up": False})
RANKED, BAD = '{"ranks": %', '{"bad": %'
"""Starts of values as the store writes them, for `LIKE`."""


def ranked(ranks: Mapping[str, int], edited: str = "") -> Mapping[str, Any]:
    """Return the value of a ranking.

    Args:
        ranks: the rank of each response by its id, in the order of the task.
        edited: id of the response that the rater wrote, empty if there is none.
    """
    return {"ranks": dict(ranks)} | ({"edited": edited} if edited else {})


def all_bad(responses: Sequence[str]) -> Mapping[str, Any]:
    """Return the value of a vote that finds these responses bad, given by their ids."""
    return {"bad": list(responses)}


def judged_ids(value: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the ids of the responses that a value names; empty if it names none."""
    return tuple(value["ranks"] if "ranks" in value else value.get("bad", ()))


def is_judgment(value: ColumnElement[str]) -> ColumnElement[bool]:
    """Return the condition that a vote holds a judgment: it is no withdrawal, skipped ranking or removed thumb."""
    return or_(value.in_([UP, DOWN]), value.like(RANKED), value.like(BAD))
