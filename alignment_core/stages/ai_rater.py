"""A model behind an OpenAI-compatible address as one more rater of what people rank, always marked as such."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from urllib.parse import urlsplit

from alignment_core.config import EndpointConfig
from alignment_core.evaluation.endpoint import Answer, Endpoint, Question
from alignment_core.feedback import FeedbackStore, Rater
from alignment_core.feedback.store import Rankable
from alignment_core.progress import Progress


def rank_by_endpoint(store: FeedbackStore, settings: EndpointConfig, scratch: Path, progress: Progress) -> int:
    """Rank whatever this rater has not ranked yet; returns how much that was.

    Every two responses are compared, in both orders. Their ranks follow from how many comparisons each won less lost.

    Args:
        store: the feedback store.
        settings: the endpoint.
        scratch: a folder that keeps answers of an interrupted ranking, so that they are not paid for again.
        progress: where to report.

    Raises:
        ConfigError: the address refuses the key, the model or the request, or gives no verdict.
        FeedbackError: the store cannot be used.
    """
    rater = Rater(f"{settings.model} at {urlsplit(settings.url).netloc.rpartition('@')[2]}", "ai")
    judged = store.judged_by(rater)
    todo = [rankable for rankable in store.rankables() if rankable.id not in judged]
    scratch.mkdir(parents=True, exist_ok=True)
    for done, rankable in enumerate(todo):
        progress.step(done, len(todo))
        kept = scratch / f"{rankable.id}.jsonl"
        answers = Endpoint(settings, progress).compare(_questions(rankable), kept).answers
        store.rank(rater, rankable, ranks_of(len(rankable.responses), answers))
        kept.unlink()
    progress.step(len(todo), len(todo))
    return len(todo)


def _questions(rankable: Rankable) -> list[Question]:
    return [Question(rankable.prompt, ours.text, theirs.text) for ours, theirs in combinations(rankable.responses, 2)]


def ranks_of(count: int, answers: Sequence[Answer]) -> list[int]:
    """Ranks from the verdicts on every two of `count` responses, in the order of `itertools.combinations`.

    A comparison without a verdict counts as a tie. Equal scores are equal ranks.
    """
    scores = [0] * count
    for (ours, theirs), answer in zip(combinations(range(count), 2), answers, strict=True):
        scores[ours] += answer.verdict or 0
        scores[theirs] -= answer.verdict or 0
    best_first = sorted(set(scores), reverse=True)
    return [1 + best_first.index(score) for score in scores]
