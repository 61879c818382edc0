"""Export votes to files that ingestion reads, and import any file that ingestion reads as votes."""

from __future__ import annotations

import gc
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignment_core.config import SourceConfig
from alignment_core.data.sources.formats import NO_PLUGINS, Plugged
from alignment_core.data.sources.formats.comparisons import KWay
from alignment_core.data.sources.formats.standard import Labelled
from alignment_core.data.sources.inputs import Input, find_inputs, unwrap_quarantined
from alignment_core.data.sources.readers import Unreadable
from alignment_core.data.sources.reading import outcomes_of
from alignment_core.errors import FeedbackError
from alignment_core.feedback.store import FeedbackStore
from alignment_core.feedback.training_rows import RANKINGS, THUMBS
from alignment_core.feedback.votes import Rater, RaterKind, Vote
from alignment_core.records import Conversation, LabelledResponse, PreferencePair, RawRow
from alignment_core.records.format import BadRow, Dropped, Quarantined, Reading, Unread
from alignment_core.records.raters import rater_and_time


def export(store: FeedbackStore, folder: Path, *, history: bool = False) -> dict[str, int]:
    """Write the current votes to `thumbs.jsonl` and `rankings.jsonl`, with rater, time, model and comment.

    Args:
        store: the feedback store.
        folder: a new folder.
        history: also write superseded votes.

    Returns:
        The number of lines in each file.

    Raises:
        FeedbackError: the folder exists or cannot be created.
        OSError: the disk is full. The folder is removed.
    """
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise FeedbackError(
            "the folder cannot be created", where=str(folder), got=error.strerror, do="Choose a new folder"
        ) from error
    try:
        return _write(folder, store.rows_to_export(history=history))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # half of the votes would look like all of them
        raise


def write_training_rows(rows: Iterable[tuple[str, str]], folder: Path) -> dict[str, int]:
    """Write the training data in votes, and count the lines. Equal votes give equal files, regardless of their order.

    Args:
        rows: the file and the line of each vote.
        folder: an existing folder.
    """
    return _write(folder, sorted(rows))


def _write(folder: Path, rows: Iterable[tuple[str, str]]) -> dict[str, int]:
    counts = {THUMBS: 0, RANKINGS: 0}
    with (
        (folder / THUMBS).open("w", encoding="utf-8") as thumbs,
        (folder / RANKINGS).open("w", encoding="utf-8") as rankings,
        _without_collector(),
    ):
        write = {THUMBS: thumbs.write, RANKINGS: rankings.write}
        for name, line in rows:
            write[name](f"{line}\n")
            counts[name] += 1
    for name in [name for name, count in counts.items() if not count]:
        (folder / name).unlink()  # a file without rows has no detectable format
    return counts


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep the garbage collector from looking at all rows again and again. They hold no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def import_votes(
    store: FeedbackStore, sources: Sequence[SourceConfig], *, kind: RaterKind = "human", plugged: Plugged = NO_PLUGINS
) -> dict[str, int]:
    """Add the votes from files in any format that ingestion reads.

    A vote without a named rater gets a separate rater, named after the file and row. A vote that is already in the
    store is not added again, so importing a file twice changes nothing.

    Args:
        store: the feedback store.
        sources: the files to read.
        kind: kind of the raters, if the file does not name it.
        plugged: record formats provided by plugins.

    Returns:
        Counts: added `thumbs` and `rankings`, `known` votes, and rejected rows by reason.

    Raises:
        DataError: a source does not exist, or no format in it is recognized.
    """
    added: Counter[str] = Counter()
    known = {identity for vote in store.votes() for identity in _identities(vote)}
    for item in find_inputs(sources, plugged):
        for found in _judgments(item, kind):
            if isinstance(found, str):
                added[found] += 1
            elif found.identity() in known:
                added["known"] += 1
            else:
                added[found.add_to(store)] += 1
                known.add(found.identity())
    return dict(added)


@dataclass(frozen=True)
class _Judgment:
    """A vote to import. Fields as in `Vote`."""

    rater: Rater
    prompt: Conversation
    answers: tuple[tuple[str, str], ...]
    ranks: tuple[int, ...]
    up: bool | None
    comment: str
    time: float | None
    edited: str = ""

    def identity(self) -> tuple[Any, ...]:
        ranked = sorted(zip(self.answers, self.ranks, strict=True)) if self.ranks else self.answers
        return (
            self.rater,
            json.dumps([dict(m) for m in self.prompt]),
            tuple(ranked),
            self.up,
            self.comment,
            self.edited,
        )

    def add_to(self, store: FeedbackStore) -> str:
        """Add the vote and return what to count it as."""
        if not self.ranks:
            response = store.add_response(self.prompt, *self.answers[0])
            store.thumb(self.rater, response, self.up, self.comment, self.time)
            return "thumbs"
        if self.edited and len(self.answers) == 1:
            answers, ranks = self.answers, self.ranks
            store.compare(self.rater, self.prompt, answers, ranks, self.comment, self.time, self.edited)
            return "rankings"
        kept = store.add_ranking_tasks([(self.prompt, self.answers)])
        if not kept or len(kept[0].responses) != len(self.ranks):
            return "identical_completions"
        store.rank(self.rater, kept[0], self.ranks, self.comment, self.time, self.edited)
        return "rankings"


def _identities(vote: Vote) -> Iterator[tuple[Any, ...]]:
    """Yield what identifies a vote of the store among imported ones: all responses are bad as by a thumb for each."""
    answers = tuple((response.text, response.model) for response in vote.responses)
    said = (vote.comment, vote.time)
    if vote.bad:
        for answer in answers:
            yield _Judgment(vote.rater, vote.prompt, (answer,), (), False, *said).identity()
        return
    written = next((place for place, one in enumerate(vote.responses) if one.id == vote.edited), None)
    yield _ranked(vote.rater, vote.prompt, answers, vote.ranks, written, vote.up, *said).identity()


def _ranked(
    rater: Rater,
    prompt: Conversation,
    answers: Sequence[tuple[str, str]],
    ranks: Sequence[int],
    written: int | None,
    up: bool | None,
    comment: str,
    time: float | None,
) -> _Judgment:
    """Return the vote. `written` is the place of an answer that the rater wrote: it is no answer of the task."""
    if written is None:
        return _Judgment(rater, prompt, tuple(answers), tuple(ranks), up, comment, time)
    left = [place for place in range(len(answers)) if place != written]
    used = sorted({ranks[place] for place in left})
    placed = tuple(1 + used.index(ranks[place]) for place in left)
    given, text = tuple(answers[place] for place in left), answers[written][0]
    return _Judgment(rater, prompt, given, placed, up, comment, time, text)


def _judgments(item: Input, kind: RaterKind) -> Iterator[_Judgment | str]:
    """Yield the votes of an input in order, or the reason where a row cannot be used."""
    if item.detection is None:
        yield "unknown_format"
        return
    format, rows = item.detection.format, _Rows(item)
    if isinstance(format, KWay):
        for row in rows:
            yield _ranking(format, row, kind)
    else:
        for outcome in outcomes_of(format, rows, item.source, item.names):
            if not isinstance(outcome, Unread):
                yield _judgment(outcome, rows.last, kind, silent=rows.comment_alone)
    yield from rows.unreadable


class _Rows:
    """The readable rows of an input, with the last row that was read.

    A comment without a thumb is passed on with a thumb, because ingestion would drop it. `comment_alone` is then True.
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
            row = unwrap_quarantined(row)
            self.last = row.value if isinstance(row.value, Mapping) else {}
            commented = self._labelled and bool(_said(self.last, 0)[0].strip())
            self.comment_alone = commented and self.last.get("label", "") is None
            yield replace(row, value={**self.last, "label": True}) if self.comment_alone else row


def _ranking(format: KWay, row: RawRow, kind: RaterKind) -> _Judgment | str:
    try:
        prompt, _, judged = format.judged(row.value)
    except BadRow as bad:
        return bad.reason
    texts = [_text(completion) for completion, _ in judged]
    if not prompt or None in texts:
        return "not_one_answer_to_a_prompt"
    best_first = sorted({score for _, score in judged}, reverse=True)
    ranks = tuple(1 + best_first.index(score) for _, score in judged)
    items = [item for item in row.value.get("completions", ()) if isinstance(item, Mapping)]
    models = [str(item.get("model", "")) for item in items] if len(items) == len(texts) else [""] * len(texts)
    written = next((place for place, item in enumerate(items) if item.get("edited") is True), None)
    answers = tuple((str(text), model) for text, model in zip(texts, models, strict=True))
    voter, when = rater_and_time(row.value)
    rater = _rater(voter, row.origin, row.value, kind)
    return _ranked(rater, prompt, answers, ranks, written, None, *_said(row.value, when))


def _judgment(
    outcome: Reading | Dropped | Quarantined, row: Mapping[str, Any], kind: RaterKind, *, silent: bool
) -> _Judgment | str:
    if not isinstance(outcome, Reading):
        return outcome.reason
    record = outcome.record
    if not isinstance(record, LabelledResponse | PreferencePair):
        return "not_a_judgment"
    sides = [record.response] if isinstance(record, LabelledResponse) else [record.chosen, record.rejected]
    texts = [_text(side) for side in sides]
    if not record.prompt or None in texts:
        return "not_one_answer_to_a_prompt"
    answers = tuple((str(text), str(row.get("model") or "")) for text in texts)
    ranks = () if isinstance(record, LabelledResponse) else (1, 2)
    up = record.desirable if isinstance(record, LabelledResponse) and not silent else None
    who = _rater(outcome.voter, record.origin, row, kind)
    return _Judgment(who, record.prompt, answers, ranks, up, *_said(row, outcome.when))


def _rater(voter: str | None, origin: str, row: Mapping[str, Any], kind: RaterKind) -> Rater:
    marked = row.get("rater_kind", kind)
    return Rater(voter or f"imported from {origin}", "ai" if marked == "ai" else "human")


def _said(row: Mapping[str, Any], when: float) -> tuple[str, float | None]:
    comment = row.get("comment")
    return (comment if isinstance(comment, str) else ""), when or None


def _text(completion: Conversation) -> str | None:
    """Return the text of the completion, or None if it has several turns or is not text."""
    content = completion[0].get("content") if len(completion) == 1 else None
    return content if isinstance(content, str) and set(completion[0]) == {"role", "content"} else None
