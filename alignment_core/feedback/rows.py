"""Rows of the feedback store, written in a transaction of the caller."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, select

from alignment_core.errors import DataError
from alignment_core.feedback import vote_sums
from alignment_core.feedback.current_votes import ID_DIGITS
from alignment_core.feedback.database import prompts, ranking_tasks, responses, votes
from alignment_core.feedback.vote_values import ranked
from alignment_core.feedback.votes import RankingTask, Rater, Response
from alignment_core.records import Conversation


def add_vote(
    connection: Connection,
    rater: Rater,
    kind: str,
    subject: str,
    value: Mapping[str, Any],
    comment: str = "",
    when: float | None = None,
) -> int:
    """Add a vote, given at `when` (seconds since the epoch, None for now), and return its number.

    Raises:
        DataError: the rater has no name, or the name or the comment cannot be stored.
    """
    if not rater.name.strip():
        raise DataError("a vote needs the rater's name", where="feedback")
    row = {
        "kind": kind,
        "subject": subject,
        "rater": _writable(rater.name.strip()),
        "rater_kind": rater.kind,
        "value": json.dumps(value),
        "comment": _writable(comment.strip()),
        "time": time.time() if when is None else when,
    }
    number = int(connection.execute(votes.insert().values(**row).returning(votes.c.id)).scalar_one())
    if number % vote_sums.BLOCK == 0:  # so that the next plan has little to add
        vote_sums.extend(connection, 2 * vote_sums.BLOCK)
    return number


def add_ranking_task(
    connection: Connection, prompt: Conversation, answers: Sequence[tuple[str, str]]
) -> RankingTask | None:
    """Add a ranking task and return it, or None if fewer than two answers (text and model) differ."""
    different: dict[str, tuple[str, str]] = {}
    for text, model in answers:
        if text.strip():
            different.setdefault(text.strip(), (text, model))
    if len(different) < 2:
        return None
    made = add_responses(connection, prompt, list(different.values()))
    ids = [response.id for response in made]
    identity = digest_of(ids)
    row = {"id": identity, "prompt": digest_of(_plain(prompt)), "responses": json.dumps(ids)}
    _insert(connection, ranking_tasks, row)
    return RankingTask(identity, prompt, tuple(made))


def add_responses(connection: Connection, prompt: Conversation, answers: Sequence[tuple[str, str]]) -> list[Response]:
    """Add a prompt and its responses (text and model), unless they exist, and return the responses.

    Raises:
        DataError: a text cannot be stored.
    """
    messages = _writable(json.dumps(_plain(prompt), ensure_ascii=False))
    asked = digest_of(_plain(prompt))
    _insert(connection, prompts, {"id": asked, "messages": messages})
    made = []
    for text, model in answers:
        response = Response(digest_of([asked, text, model]), _writable(text), model)
        row = {"id": response.id, "prompt": asked, "text": text, "model": model}
        _insert(connection, responses, row)
        made.append(response)
    return made


def ranking_value(
    connection: Connection,
    prompt: Conversation,
    judged: Sequence[Response],
    ranks: Sequence[int],
    edited: str,
    where: str,
) -> Mapping[str, Any]:
    """Return the value of a ranking. An edited text is added to the responses, and ranks first.

    Raises:
        DataError: the ranks do not match the responses, or the edited text is one of them.
    """
    if len(ranks) != len(judged) or min(ranks) < 1:
        expected = f"{len(judged)} ranks from 1"
        raise DataError("the ranking does not match the responses", where=where, got=list(ranks), expected=expected)
    given = {response.id: int(rank) for response, rank in zip(judged, ranks, strict=True)}
    if not edited.strip():
        return ranked(given)
    if edited.strip() in {response.text.strip() for response in judged}:
        raise DataError(
            "the edited answer is equal to one of the responses",
            where=where,
            got=edited[:60],
            do="Change it, or discard the edit and rank that response first",
        )
    (added,) = add_responses(connection, prompt, [(edited, "")])
    return ranked({added.id: 1} | {name: rank + 1 for name, rank in given.items()}, added.id)


def digest_of(value: Any) -> str:
    """Return the id of a prompt, a response or a ranking task: a hash of what it consists of."""
    text = json.dumps(value, ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]


def _plain(prompt: Conversation) -> list[dict[str, Any]]:
    return [dict(message) for message in prompt]


def _insert(connection: Connection, table: Table, row: Mapping[str, Any]) -> None:
    """Insert a row unless it exists. Writers are serialized, so no other process can insert it in between."""
    if connection.execute(select(table.c.id).where(table.c.id == row["id"])).scalar() is None:
        connection.execute(table.insert().values(**row))


def _writable(text: str) -> str:
    """Return the text unchanged if a database can store it.

    Raises:
        DataError: it contains a NUL character or a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError("the text is not valid Unicode", where="feedback", got=ascii(text[:60])) from None
    if "\0" in text:
        raise DataError("the text contains a NUL character", where="feedback", got=ascii(text[:60]))
    return text
