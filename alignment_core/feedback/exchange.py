"""Votes as files that ingestion reads, and any file that ingestion reads as votes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignment_core.config import SourceConfig
from alignment_core.data.formats import NO_PLUGINS, Plugged
from alignment_core.data.formats.compared import KWay
from alignment_core.data.formats.comparing import rater
from alignment_core.data.formats.standard import Labelled
from alignment_core.data.inputs import Input, find_inputs, mended
from alignment_core.data.readers import Unreadable
from alignment_core.errors import FeedbackError
from alignment_core.feedback.store import FeedbackStore
from alignment_core.feedback.votes import Rater, RaterKind, Vote
from alignment_core.record_format import BadRow, Outcome, Reading
from alignment_core.records import Conversation, LabelledResponse, PreferencePair, RawRow

THUMBS, RANKINGS = "thumbs.jsonl", "rankings.jsonl"
"""Two files, because each is of one format: labelled responses, and K-way rankings."""


def export(store: FeedbackStore, folder: Path, *, history: bool = False) -> dict[str, int]:
    """Write the votes in force as `thumbs.jsonl` and `rankings.jsonl`, with rater, time, model and comment.

    Args:
        store: where they are.
        folder: a new folder.
        history: write every vote that was not withdrawn, the superseded ones too.

    Returns:
        The number of votes in each file.

    Raises:
        FeedbackError: the folder is there already or cannot be written.
    """
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise FeedbackError(
            "the folder cannot be made", where=str(folder), got=error.strerror, do="Name a new one"
        ) from error
    votes = store.history() if history else store.votes()
    return _write(folder, ((name, _whole(vote, row)) for vote in votes for name, row in _rows(vote)))


def write_training_rows(votes: Iterable[Vote], folder: Path) -> None:
    """Write what the votes say to learn from, and nothing else: equal votes make equal files, whenever they came."""
    _write(folder, ((name, json.loads(line)) for name, line in _training_lines(votes)))


def digest_of(votes: Iterable[Vote]) -> str:
    """What identifies the votes as data: equal where `write_training_rows` writes the same files."""
    return hashlib.sha256(json.dumps(_training_lines(votes)).encode()).hexdigest()


def _training_lines(votes: Iterable[Vote]) -> list[tuple[str, str]]:
    return sorted((name, json.dumps(row, ensure_ascii=False)) for vote in votes for name, row in _rows(vote))


def _rows(vote: Vote) -> Iterator[tuple[str, dict[str, Any]]]:
    """The vote's file and its row there; nothing for a ranking that was skipped."""
    prompt = [dict(message) for message in vote.prompt]
    if vote.is_thumb:
        yield THUMBS, {"prompt": prompt, "completion": vote.responses[0].text, "label": vote.up}
    elif vote.ranks:
        ranked = zip(vote.responses, vote.ranks, strict=True)
        completions = [{"completion": response.text, "rank": rank} for response, rank in ranked]
        yield RANKINGS, {"prompt": prompt, "completions": completions}


def _whole(vote: Vote, row: dict[str, Any]) -> dict[str, Any]:
    for completion, response in zip(row.get("completions", (row,)), vote.responses, strict=True):
        completion["model"] = response.model
    rated = {"rater": vote.rater.name, "rater_kind": vote.rater.kind, "time": vote.time, "comment": vote.comment}
    return {**row, **rated}


def _write(folder: Path, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, int]:
    counts = {THUMBS: 0, RANKINGS: 0}
    with (folder / THUMBS).open("w", encoding="utf-8") as thumbs, (folder / RANKINGS).open("w", encoding="utf-8") as k:
        files = {THUMBS: thumbs, RANKINGS: k}
        for name, row in rows:
            files[name].write(json.dumps(row, ensure_ascii=False) + "\n")
            counts[name] += 1
    for name in [name for name, count in counts.items() if not count]:
        (folder / name).unlink()  # a file without rows is of no format
    return counts


def import_votes(
    store: FeedbackStore, sources: Sequence[SourceConfig], *, kind: RaterKind = "human", plugged: Plugged = NO_PLUGINS
) -> dict[str, int]:
    """Add the judgements of files in any format that ingestion reads.

    A vote whose rater the file does not name counts as somebody's of its own. One that is in the store already, as it
    stands, is not added again: importing a file twice changes nothing.

    Args:
        store: where they go.
        sources: what to read.
        kind: who judged, where the file does not say.
        plugged: record formats that plugins bring.

    Returns:
        `thumbs` and `rankings` that were added, `known` ones, and what could not be used by its reason.

    Raises:
        DataError: a source is not there, or nothing in it is recognised.
    """
    added: Counter[str] = Counter()
    known = {_identity(vote) for vote in store.votes()}
    for item in find_inputs(sources, plugged):
        for found in _judgements(item, kind):
            if isinstance(found, str):
                added[found] += 1
            elif found.identity() in known:
                added["known"] += 1
            else:
                added[found.add_to(store)] += 1
                known.add(found.identity())
    return dict(added)


@dataclass(frozen=True)
class _Judgement:
    """A vote on its way into the store. Fields as in `Vote`."""

    rater: Rater
    prompt: Conversation
    answers: tuple[tuple[str, str], ...]
    ranks: tuple[int, ...]
    up: bool | None
    comment: str
    time: float | None

    def identity(self) -> tuple[Any, ...]:
        ranked = sorted(zip(self.answers, self.ranks, strict=True)) if self.ranks else self.answers
        return (self.rater, json.dumps([dict(m) for m in self.prompt]), tuple(ranked), self.up, self.comment)

    def add_to(self, store: FeedbackStore) -> str:
        """Returns what it was."""
        if not self.ranks:
            response = store.add_response(self.prompt, *self.answers[0])
            store.thumb(self.rater, response, self.up, self.comment, self.time)
            return "thumbs"
        kept = store.add_rankables([(self.prompt, self.answers)])
        if not kept or len(kept[0].responses) != len(self.ranks):
            return "identical_completions"
        store.rank(self.rater, kept[0], self.ranks, self.comment, self.time)
        return "rankings"


def _identity(vote: Vote) -> tuple[Any, ...]:
    answers = tuple((response.text, response.model) for response in vote.responses)
    return _Judgement(vote.rater, vote.prompt, answers, vote.ranks, vote.up, vote.comment, vote.time).identity()


def _judgements(item: Input, kind: RaterKind) -> Iterator[_Judgement | str]:
    """What an input says, in order; the reason where something cannot be used."""
    if item.detection is None:
        yield "unknown_format"
        return
    format, rows = item.detection.format, _Rows(item)
    if isinstance(format, KWay):
        for row in rows:
            yield _ranking(format, row, kind)
    else:
        for outcome in format.records(rows, item.source):
            yield _judgement(outcome, rows.last, kind, silent=rows.comment_alone)
    yield from rows.unreadable


class _Rows:
    """The readable rows of an input, and the last one that was asked for.

    A comment without a thumb is handed on with a thumb, for ingestion would drop it: `comment_alone` says so.
    """

    def __init__(self, item: Input) -> None:
        self._item = item
        self._labelled = item.detection is not None and isinstance(item.detection.format, Labelled)
        self.last: Mapping[str, Any] = {}
        self.comment_alone = False
        self.unreadable: list[str] = []

    def __iter__(self) -> Iterator[RawRow]:
        for row in self._item.rows():
            if isinstance(row, Unreadable):
                self.unreadable.append(row.reason)
                continue
            row = mended(row)
            self.last = row.value if isinstance(row.value, Mapping) else {}
            commented = self._labelled and bool(_said(self.last, 0)[0].strip())
            self.comment_alone = commented and self.last.get("label", "") is None
            yield replace(row, value={**self.last, "label": True}) if self.comment_alone else row


def _ranking(format: KWay, row: RawRow, kind: RaterKind) -> _Judgement | str:
    try:
        prompt, _, judged = format.judged(row.value)
    except BadRow as bad:
        return bad.reason
    texts = [_text(completion) for completion, _ in judged]
    if not prompt or None in texts:
        return "not_one_answer_to_a_prompt"
    best_first = sorted({score for _, score in judged}, reverse=True)
    ranks = tuple(1 + best_first.index(score) for _, score in judged)
    models = [str(item.get("model", "")) for item in row.value.get("completions", ()) if isinstance(item, Mapping)]
    models = models if len(models) == len(texts) else [""] * len(texts)
    answers = tuple((str(text), model) for text, model in zip(texts, models, strict=True))
    voter, when = rater(row.value)
    return _Judgement(_rater(voter, row.origin, row.value, kind), prompt, answers, ranks, None, *_said(row.value, when))


def _judgement(outcome: Outcome, row: Mapping[str, Any], kind: RaterKind, *, silent: bool) -> _Judgement | str:
    if not isinstance(outcome, Reading):
        return outcome.reason
    record = outcome.record
    if not isinstance(record, LabelledResponse | PreferencePair):
        return "not_a_judgement"
    sides = [record.response] if isinstance(record, LabelledResponse) else [record.chosen, record.rejected]
    texts = [_text(side) for side in sides]
    if not record.prompt or None in texts:
        return "not_one_answer_to_a_prompt"
    answers = tuple((str(text), str(row.get("model") or "")) for text in texts)
    ranks = () if isinstance(record, LabelledResponse) else (1, 2)
    up = record.desirable if isinstance(record, LabelledResponse) and not silent else None
    who = _rater(outcome.voter, record.origin, row, kind)
    return _Judgement(who, record.prompt, answers, ranks, up, *_said(row, outcome.when))


def _rater(voter: str | None, origin: str, row: Mapping[str, Any], kind: RaterKind) -> Rater:
    marked = row.get("rater_kind", kind)
    return Rater(voter or f"imported from {origin}", "ai" if marked == "ai" else "human")


def _said(row: Mapping[str, Any], when: float) -> tuple[str, float | None]:
    comment = row.get("comment")
    return (comment if isinstance(comment, str) else ""), when or None


def _text(completion: Conversation) -> str | None:
    """The answer's text; None where it is more than one turn, or no text."""
    content = completion[0].get("content") if len(completion) == 1 else None
    return content if isinstance(content, str) and set(completion[0]) == {"role", "content"} else None
